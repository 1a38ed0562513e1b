"""Where commands print. By itself, so that a command that has to be quick loads nothing else."""

from __future__ import annotations

from rich.console import Console

console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)  # what is printed is often the user's words
