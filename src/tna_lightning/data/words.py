"""Words of what a person is told about data."""

from __future__ import annotations

from collections.abc import Sequence


def listed(names: Sequence[str], most: int = 10, between: str = ", ") -> str:
    """The first of them, ``a, b and 3 more``: a warning is one line."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return between.join(names[:most]) + more
