"""A value with its D-Bus type, as options and properties carry it. Needs no D-Bus library."""

from __future__ import annotations

from typing import Any, NamedTuple


class Typed(NamedTuple):
    """A plain value with the D-Bus signature it came with."""

    signature: str
    value: Any
