"""The daemon in a guest as its callers see it: verbs that return values, errors that are exceptions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from .guest import bus, target
from .harness import Guest

ERROR = "org.nvmeofd1.Error."
SUBSYSTEM = "org.nvmeofd1.Subsystem"
VOLUME = "org.nvmeofd1.Volume"
JOB = "org.nvmeofd1.Job"
BOTH = ("tcp://127.0.0.1:4420", "tcp://127.0.0.2:4420")
ONE = BOTH[:1]
SIGNED = ("ctrl-loss-tmo", "fast-io-fail-tmo")  # of D-Bus type i whatever the value


class DaemonError(Exception):
    """An error reply. `name` is without the daemon's own prefix."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name.removeprefix(ERROR)
        self.message = message


@contextmanager
def refused(name: str, *parts: str) -> Iterator[None]:
    """What is called inside must end with this error, and its message must contain all the parts."""
    with pytest.raises(DaemonError) as caught:
        yield
    assert caught.value.name == name, str(caught.value)
    for part in parts:
        assert part in caught.value.message


class Daemon:
    """Namespaces are named by number (and meant by UUID) or by a text that is passed on as it is."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    # Verbs

    def stage(
        self,
        nqn: str,
        namespace: int | str,
        path: str,
        addresses: tuple[str, ...] = BOTH,
        **options: Any,
    ) -> str:
        """Returns the device."""
        arguments = stage_arguments(nqn, namespace, path, addresses, options)
        volume, device = value(self.guest.call(bus.stage, *arguments))
        assert volume == volume_path(path)
        assert isinstance(device, str)
        return device

    def unstage(self, path: str, **options: Any) -> bool:
        """Returns whether the subsystem is not connected any more."""
        (disconnected,) = value(self.guest.call(bus.unstage, path, named(options)))
        assert isinstance(disconnected, bool)
        return disconnected

    def disconnect(self, nqn: str, **options: Any) -> list[str]:
        """Returns the names of the controllers that were deleted."""
        (controllers,) = value(self.guest.call(bus.disconnect, nqn, named(options)))
        return [str(name) for name in controllers]

    # The same without waiting

    def start_stage(
        self, nqn: str, namespace: int | str, path: str, addresses: tuple[str, ...] = BOTH, **options: Any
    ) -> int:
        arguments = stage_arguments(nqn, namespace, path, addresses, options)
        return self.guest.call(bus.start, "Stage", "ssassa{sv}", list(arguments))

    def start_unstage(self, path: str, **options: Any) -> int:
        return self.guest.call(bus.start, "Unstage", "sa{sv}", [path, named(options)])

    def start_disconnect(self, nqn: str, **options: Any) -> int:
        return self.guest.call(bus.start, "Disconnect", "sa{sv}", [nqn, named(options)])

    def finish(self, serial: int, timeout: float = 120.0) -> list[Any]:
        """The answer to a call of `start_…`: all values of the reply."""
        return value(self.guest.call(bus.finish, serial, timeout=timeout))

    # Questions

    def subsystem(self, nqn: str) -> dict[str, Any]:
        return self.guest.call(bus.properties, subsystem_path(nqn), SUBSYSTEM)

    def volume(self, path: str) -> dict[str, Any]:
        return self.guest.call(bus.properties, volume_path(path), VOLUME)

    def users(self, nqn: str) -> list[tuple[str, str, str]]:
        """Kind, device and detail of every user."""
        (users,) = value(self.guest.call(bus.call, subsystem_path(nqn), SUBSYSTEM, "ListUsers"))
        return [(kind, device, detail) for kind, device, detail in users]

    def objects(self, kind: str) -> list[str]:
        """Paths of all objects of a kind: subsystem, volume or job."""
        prefix = f"{bus.ROOT}/{kind}/"
        return sorted(path for path in self.guest.call(bus.managed_objects) if path.startswith(prefix))


def value(reply: bus.Reply) -> list[Any]:
    """The values of a reply. Raises DaemonError."""
    if reply["error"]:
        raise DaemonError(reply["error"], reply["message"])
    return reply["body"]


def subsystem_path(nqn: str) -> str:
    return f"{bus.ROOT}/subsystem/{bus.encode_label(nqn)}"


def volume_path(path: str) -> str:
    return f"{bus.ROOT}/volume/{bus.encode_label(path)}"


def named(options: dict[str, Any]) -> dict[str, Any]:
    """Options by their names on the bus."""
    result = {}
    for key, option in options.items():
        name = key.replace("_", "-")
        result[name] = {"type": "i", "value": option} if name in SIGNED else option
    return result


def stage_arguments(
    nqn: str, namespace: int | str, path: str, addresses: tuple[str, ...], options: dict[str, Any]
) -> tuple[str, str, list[str], str, dict[str, Any]]:
    name = f"uuid.{target.namespace_uuid(nqn, namespace)}" if isinstance(namespace, int) else namespace
    return nqn, name, list(addresses), path, named(options)
