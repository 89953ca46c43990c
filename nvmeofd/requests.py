"""Requests as clients make them: options are checked by name and type once, here, and frozen.

The bus hands options over as a mapping from key to :class:`nvmeofd.typed.Typed`, so that this module needs no D-Bus
library.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, TypeVar

from nvmeofd.addresses import Address
from nvmeofd.errors import InvalidArgument
from nvmeofd.model import FormatPolicy, NamespaceId, VolumeType, parse_host_id, parse_nqn, parse_subsystem_nqn
from nvmeofd.tooloptions import mkfs_options, mount_options
from nvmeofd.typed import Typed

DEFAULT_FSTYPE = "ext4"  # what is made when a blank device is to be formatted and nothing else is said
MAX_ADDRESSES = 64
MAX_TOOL_OPTIONS = 64
MAX_TIMEOUT = 86_400  # seconds
PATH_MAX = 4096  # include/uapi/linux/limits.h
NAME_MAX = 255
FORBIDDEN_ROOTS = ("/proc", "/sys", "/dev", "/run/nvmeofd")
# Secrets are refused by name until the daemon can keep them: silently connecting without would not be what was asked.
SECRET_OPTIONS = ("dhchap-secret", "dhchap-secret-file", "dhchap-ctrl-secret", "dhchap-ctrl-secret-file")

E = TypeVar("E", bound=StrEnum)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectOptions:
    """Options of the connection, None where the configuration decides. Times are seconds; -1 means for ever."""

    host_nqn: str | None = None
    host_id: str | None = None
    ctrl_loss_tmo: int | None = None
    fast_io_fail_tmo: int | None = None
    reconnect_delay: int | None = None
    keep_alive_tmo: int | None = None
    nr_io_queues: int | None = None
    queue_size: int | None = None
    hdr_digest: bool = False
    data_digest: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRequest:
    """One call of Stage. ``timeout`` is in seconds, None for the configured default."""

    nqn: str
    namespace: NamespaceId
    addresses: tuple[Address, ...]
    staging_path: str
    type: VolumeType = VolumeType.FILESYSTEM
    fstype: str | None = None
    format: FormatPolicy = FormatPolicy.NEVER
    mkfs_options: tuple[str, ...] = ()
    mount_options: tuple[str, ...] = ()
    read_only: bool = False
    fsck: bool = True
    min_paths: int = 1
    timeout: int | None = None
    connect: ConnectOptions = field(default_factory=ConnectOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnstageRequest:
    """One call of Unstage."""

    staging_path: str
    keep_connected: bool = False
    force: bool = False
    timeout: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DisconnectRequest:
    """One call of Disconnect."""

    nqn: str
    timeout: int | None = None


def parse_stage(
    nqn: str, namespace: str, addresses: Sequence[str], staging_path: str, options: Mapping[str, Typed]
) -> StageRequest:
    """Check the arguments of Stage. Raises InvalidArgument, which names what is wrong."""
    if not addresses:
        raise InvalidArgument("addresses: at least one is needed")
    if len(addresses) > MAX_ADDRESSES:
        raise InvalidArgument(f"addresses: {len(addresses)} given, at most {MAX_ADDRESSES} are accepted")
    read = _Options(options)
    read.refuse(SECRET_OPTIONS, "DH-HMAC-CHAP secrets are not supported yet")
    fstype = read.string("fstype")
    if fstype is not None and not re.fullmatch(r"[a-z][a-z0-9_.-]{0,31}", fstype):
        raise InvalidArgument(f"option fstype: {fstype[:64]!r} is not the name of a filesystem type")
    request = StageRequest(
        nqn=parse_subsystem_nqn(nqn),
        namespace=NamespaceId.parse(namespace),
        addresses=tuple(dict.fromkeys(Address.parse(a) for a in addresses)),
        staging_path=parse_staging_path(staging_path),
        type=read.choice("type", VolumeType, VolumeType.FILESYSTEM),
        fstype=fstype,
        format=read.choice("format", FormatPolicy, FormatPolicy.NEVER),
        mkfs_options=mkfs_options(fstype or DEFAULT_FSTYPE, read.strings("mkfs-options")),
        mount_options=mount_options(read.strings("mount-options")),
        read_only=read.boolean("read-only", False),
        fsck=read.boolean("fsck", True),
        min_paths=read.number("min-paths", "u", 1, MAX_ADDRESSES) or 1,
        timeout=_timeout(read),
        connect=_connect_options(read),
    )
    read.finish()
    if request.min_paths > len(request.addresses):
        raise InvalidArgument(
            f"option min-paths: {request.min_paths} paths cannot come from {len(request.addresses)} addresses"
        )
    if request.type is VolumeType.BLOCK:
        given = {
            "fstype": request.fstype is not None,
            "format": request.format is not FormatPolicy.NEVER,
            "mkfs-options": bool(request.mkfs_options),
            "mount-options": bool(request.mount_options),
        }
        for key in (key for key, is_given in given.items() if is_given):
            raise InvalidArgument(f"option {key}: applies to type filesystem only")
    if request.mkfs_options and request.format is FormatPolicy.NEVER:
        raise InvalidArgument("option mkfs-options: needs format=if-empty")
    return request


def parse_unstage(staging_path: str, options: Mapping[str, Typed]) -> UnstageRequest:
    """Check the arguments of Unstage. Raises InvalidArgument, which names what is wrong."""
    read = _Options(options)
    request = UnstageRequest(
        staging_path=parse_staging_path(staging_path),
        keep_connected=read.boolean("keep-connected", False),
        force=read.boolean("force", False),
        timeout=_timeout(read),
    )
    read.finish()
    if request.force and request.keep_connected:
        raise InvalidArgument("option force: disconnects, so keep-connected cannot be asked for as well")
    return request


def parse_disconnect(nqn: str, options: Mapping[str, Typed]) -> DisconnectRequest:
    """Check the arguments of Disconnect. Raises InvalidArgument, which names what is wrong."""
    read = _Options(options)
    request = DisconnectRequest(nqn=parse_subsystem_nqn(nqn), timeout=_timeout(read))
    read.finish()
    return request


def parse_staging_path(path: str) -> str:
    """Check the form of a staging path: absolute, normal, encodable, and not where the system or the daemon lives.

    What the file system holds there is looked at later, when the job runs.

    Raises:
        InvalidArgument: names the path and the reason.
    """
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError:
        raise InvalidArgument("staging path: not encodable as a file name") from None
    if "\0" in path:
        raise InvalidArgument("staging path: contains a NUL character")
    if size >= PATH_MAX:
        raise InvalidArgument(f"staging path: {size} bytes long, the limit is {PATH_MAX - 1}")
    if not path.startswith("/"):
        raise InvalidArgument(f"staging path: {path!r} is not absolute")
    if path == "/" or path != posixpath.normpath(path) or path.startswith("//"):
        raise InvalidArgument(
            f"staging path: {path!r} is the root directory or not in normal form (no '.', '..', '//' or '/' at the end)"
        )
    if any(len(os.fsencode(part)) > NAME_MAX for part in path.split("/")):
        raise InvalidArgument(f"staging path: a component is longer than {NAME_MAX} bytes")
    for root in FORBIDDEN_ROOTS:
        if path == root or path.startswith(root + "/"):
            raise InvalidArgument(f"staging path: {path!r} is in {root}, where nothing may be staged")
    return path


class _Options:
    """Typed getters over the options of one call. What is left over at the end is unknown and refused."""

    def __init__(self, options: Mapping[str, Typed]) -> None:
        self._left = dict(options)
        self._known: list[str] = []

    def _take(self, key: str, signature: str, type_name: str) -> Any:
        self._known.append(key)
        typed = self._left.pop(key, None)
        if typed is None:
            return None
        if typed.signature != signature:
            raise InvalidArgument(
                f"option {key}: expected {type_name} (D-Bus type {signature}), got D-Bus type {typed.signature[:32]}"
            )
        return typed.value

    def string(self, key: str) -> str | None:
        value: str | None = self._take(key, "s", "a string")
        return value

    def boolean(self, key: str, default: bool) -> bool:
        value = self._take(key, "b", "a boolean")
        return default if value is None else bool(value)

    def strings(self, key: str) -> tuple[str, ...]:
        values = tuple(self._take(key, "as", "an array of strings") or ())
        if len(values) > MAX_TOOL_OPTIONS:
            raise InvalidArgument(f"option {key}: {len(values)} entries, at most {MAX_TOOL_OPTIONS} are accepted")
        return values

    def number(self, key: str, signature: str, low: int, high: int) -> int | None:
        kind = "an unsigned integer" if signature == "u" else "an integer"
        value: int | None = self._take(key, signature, kind)
        if value is not None and not low <= value <= high:
            raise InvalidArgument(f"option {key}: {value} is not between {low} and {high}")
        return value

    def choice(self, key: str, values: type[E], default: E) -> E:
        text = self.string(key)
        if text is None:
            return default
        try:
            return values(text)
        except ValueError:
            known = " or ".join(values)
            raise InvalidArgument(f"option {key}: {text[:64]!r} is not {known}") from None

    def refuse(self, keys: Sequence[str], why: str) -> None:
        for key in keys:
            if key in self._left:
                raise InvalidArgument(f"option {key}: {why}")

    def finish(self) -> None:
        for key in self._left:
            similar = get_close_matches(key[:64], self._known, n=1)
            hint = f", did you mean {similar[0]!r}?" if similar else ""
            raise InvalidArgument(f"option {key[:64]!r} is unknown{hint}")


def _timeout(read: _Options) -> int | None:
    return read.number("timeout", "u", 1, MAX_TIMEOUT)


def _connect_options(read: _Options) -> ConnectOptions:
    host_nqn, host_id = read.string("host-nqn"), read.string("host-id")
    return ConnectOptions(
        host_nqn=None if host_nqn is None else parse_nqn(host_nqn, what="host-nqn"),
        host_id=None if host_id is None else parse_host_id(host_id),
        # upper bounds: the kernel keeps these in an int, drivers/nvme/host/fabrics.c
        ctrl_loss_tmo=read.number("ctrl-loss-tmo", "i", -1, MAX_TIMEOUT * 365),
        fast_io_fail_tmo=read.number("fast-io-fail-tmo", "i", -1, MAX_TIMEOUT * 365),
        reconnect_delay=read.number("reconnect-delay", "u", 1, MAX_TIMEOUT),
        keep_alive_tmo=read.number("keep-alive-tmo", "u", 0, 65_535),
        nr_io_queues=read.number("nr-io-queues", "u", 1, 65_535),
        queue_size=read.number("queue-size", "u", 16, 1024),
        hdr_digest=read.boolean("hdr-digest", False),
        data_digest=read.boolean("data-digest", False),
    )
