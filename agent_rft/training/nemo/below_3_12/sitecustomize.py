"""On the path of Ray's worker processes, which run this before anything else: pydantic refuses the TypedDict that Python
knew before 3.12, and NeMo RL's configuration is made of them."""

import sys
import typing

if sys.version_info < (3, 12):
    import typing_extensions

    typing.TypedDict = typing_extensions.TypedDict  # pyright: ignore[reportAttributeAccessIssue]
