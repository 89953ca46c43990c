"""What the service may say to a caller that it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from nvmeofd import errors
from nvmeofd.bus import messages
from nvmeofd.bus.messages import DBusError

KNOWN_NAMES = {errors.dbus_name(kind("")) for kind in errors.NvmeofdError.__subclasses__()} | {
    value for value in vars(messages).values() if isinstance(value, str) and ".Error." in value
}
# What the service says when something happened that nobody thought of.
UNEXPECTED = errors.dbus_name(errors.Failed(""))


def check(error: DBusError) -> None:
    assert error.name in KNOWN_NAMES - {UNEXPECTED}, str(error)
    assert error.text
    assert len(error.text) < 16 << 10


async def refusals(work: list[Awaitable[Any]]) -> int:
    """How many of these calls are refused; there must be no other failures."""
    answers = await asyncio.gather(*work, return_exceptions=True)
    refused = [one for one in answers if isinstance(one, BaseException)]
    for error in refused:
        assert isinstance(error, DBusError)
        check(error)
    return len(refused)
