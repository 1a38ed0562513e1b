"""`python -m agent_rft` is the `rft` command."""

import sys

from agent_rft.cli import main

sys.exit(main())
