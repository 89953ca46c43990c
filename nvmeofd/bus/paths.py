"""Object paths."""

from __future__ import annotations

import re

SERVICE_NAME = "org.nvmeofd1"
ROOT = "/org/nvmeofd1"

_ESCAPED = re.compile(rb"(?:^[0-9])|[^A-Za-z0-9]")


def escape(label: str) -> str:
    """``label`` as one element of an object path, as sd_bus_path_encode(3) does it.

    Every byte that is not a letter or digit, and a digit at the start, becomes ``_xx``; nothing becomes ``_``.
    """
    raw = label.encode("utf-8", "surrogateescape")
    return _ESCAPED.sub(lambda found: b"_%02x" % found[0][0], raw).decode("ascii") or "_"


def subsystem_path(nqn: str) -> str:
    return f"{ROOT}/subsystem/{escape(nqn)}"


def volume_path(staging_path: str) -> str:
    return f"{ROOT}/volume/{escape(staging_path)}"


def job_path(number: int) -> str:
    return f"{ROOT}/job/{number}"
