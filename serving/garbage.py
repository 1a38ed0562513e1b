"""How often Python looks for garbage that holds itself, in servers.

It looks after every 700 new objects, and now and then through all there are, of which a server's modules and tables are most and never
go: it took a fifth of the time of a card, and a request that met it waited long.
"""

from __future__ import annotations

import gc

NEW_OBJECTS = 50_000
"""Beyond those that went: until the young are looked through. What of them holds itself waits so long."""


def look_less_often() -> None:
    """To be called once what stays is there."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, 10, 10)
