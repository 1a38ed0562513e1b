"""Letters that people take for one another: what looks the same is compared as the same."""

from __future__ import annotations

import unicodedata

_CYRILLIC = dict(zip("авеѕіјкмнорстухӏһԁԛԝ", "abesijkmhopctyxlhdqw", strict=True))
_GREEK = dict(zip("αβεζηικμνορτυχ", "abezhikmnoptyx", strict=True))
_LATIN = str.maketrans(_CYRILLIC | _GREEK | {"ı": "i", "ɑ": "a", "ɡ": "g"})
_UNSEEN = dict.fromkeys(
    (0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0, *range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
)
"""What is drawn as nothing, and counts as printable all the same."""


def plain(text: str) -> str:
    """Without capitals, widths, ornaments and what nobody sees; and in Latin letters what looks like them. Words of one alphabet stay as
    different as they are, but for ı, which is taken for i, and һ, for н."""
    return unicodedata.normalize("NFKC", text.translate(_UNSEEN)).casefold().translate(_LATIN)
