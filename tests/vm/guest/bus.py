"""A blocking client of the system bus inside the agent: any call, many at once, signals, messages that are wrong."""

from __future__ import annotations

import ctypes
import itertools
import os
import socket
import threading
import time
from typing import Any, TypedDict

from . import wire

BUS = "/run/dbus/system_bus_socket"
DAEMON = "org.nvmeofd1"
ROOT = "/org/nvmeofd1"
MANAGER = "org.nvmeofd1.Manager"
PROPERTIES = "org.freedesktop.DBus.Properties"
DBUS = "org.freedesktop.DBus"
SYS_SETGROUPS, SYS_SETRESUID, SYS_SETRESGID = 116, 117, 119  # x86-64


class Reply(TypedDict):
    """`error` is "" on success; else its name, and `message` what the daemon says."""

    error: str
    message: str
    signature: str
    body: list[Any]


class Signal(TypedDict):
    number: int
    sender: str
    path: str
    interface: str
    member: str
    body: list[Any]


class Connection:
    """One connection; a thread reads, any thread writes."""

    def __init__(self, uid: int, groups: list[int] | None = None) -> None:
        self._sock = _connect(uid, groups)
        self._serials = itertools.count(1)
        self._changed = threading.Condition()
        self._replies: dict[int, dict[str, Any]] = {}
        self.signals: list[Signal] = []
        self.closed = False
        threading.Thread(target=self._read, name="bus", daemon=True).start()
        self.name = str(self.call("org.freedesktop.DBus", "/", "org.freedesktop.DBus", "Hello")["body"][0])

    def _read(self) -> None:
        buffer = b""
        while received := self._receive():
            buffer += received
            while len(buffer) >= 16 and len(buffer) >= (length := wire.total_length(buffer)):
                message, buffer = wire.parse(buffer[:length]), buffer[length:]
                with self._changed:
                    self._sort(message)
                    self._changed.notify_all()
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def _receive(self) -> bytes:
        try:
            return self._sock.recv(1 << 18)
        except OSError:
            return b""

    def _sort(self, message: dict[str, Any]) -> None:
        if message["type"] in (wire.METHOD_RETURN, wire.ERROR):
            self._replies[message["reply_serial"]] = message
        elif message["type"] == wire.SIGNAL:
            signal: Signal = {
                "number": len(self.signals),
                "sender": message["sender"],
                "path": message["path"],
                "interface": message["interface"],
                "member": message["member"],
                "body": message["body"],
            }
            self.signals.append(signal)

    def send(self, destination: str, path: str, interface: str, member: str, signature: str, body: list[Any]) -> int:
        serial = next(self._serials)
        fields = {wire.PATH: path, wire.DESTINATION: destination, wire.MEMBER: member}
        if interface:
            fields[wire.INTERFACE] = interface
        self.send_bytes(wire.message(wire.METHOD_CALL, serial, fields, signature, body))
        return serial

    def send_bytes(self, data: bytes) -> None:
        self._sock.sendall(data)

    def reply(self, serial: int, timeout: float) -> Reply:
        def here() -> bool:
            return serial in self._replies or self.closed

        with self._changed:
            if not self._changed.wait_for(here, timeout):
                raise TimeoutError(f"no reply within {timeout} s")
            if serial not in self._replies:
                raise ConnectionResetError("the bus closed the connection")
            message = self._replies.pop(serial)
        body = message["body"]
        failed = message["type"] == wire.ERROR
        return {
            "error": message["error"],
            "message": str(body[0]) if failed and body else "",
            "signature": message["signature"],
            "body": body,
        }

    def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: list[Any] | None = None,
        timeout: float = 30.0,
    ) -> Reply:
        return self.reply(self.send(destination, path, interface, member, signature, body or []), timeout)

    def wait_signal(self, member: str, path: str, since: int, timeout: float) -> Signal:
        def found() -> Signal | None:
            return next(
                (s for s in self.signals[since:] if s["member"] == member and path in ("", s["path"])),
                None,
            )

        deadline = time.monotonic() + timeout
        with self._changed:
            while (signal := found()) is None:
                if self.closed or not self._changed.wait(deadline - time.monotonic()):
                    seen = [f"{s['path']} {s['member']}" for s in self.signals[since:]]
                    raise TimeoutError(f"no signal {member} of {path or 'anybody'} within {timeout} s; seen: {seen}")
            return signal

    def close(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


def _connect(uid: int, groups: list[int] | None) -> socket.socket:
    """Connect and authenticate as a user. The bus asks the kernel who connected: a thread becomes that user for it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    failures: list[BaseException] = []

    def connect() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            # The bare system calls change this thread only; the library's functions would change them all.
            if groups is not None:
                _check(libc.syscall(SYS_SETGROUPS, len(groups), (ctypes.c_uint32 * len(groups))(*groups)), "setgroups")
                _check(libc.syscall(SYS_SETRESGID, groups[0], groups[0], -1), "setresgid")
            if uid:
                _check(libc.syscall(SYS_SETRESUID, uid, uid, -1), "setresuid")
            sock.connect(BUS)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=connect)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    sock.sendall(b"\0AUTH EXTERNAL " + str(uid).encode().hex().encode() + b"\r\n")
    answer = sock.recv(4096)
    if not answer.startswith(b"OK "):
        raise PermissionError(f"the bus answers {answer!r} to uid {uid}")
    sock.sendall(b"BEGIN\r\n")
    return sock


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), what)


_connections: dict[str, Connection] = {}
_lock = threading.Lock()


def connection(label: str = "main") -> Connection:
    """The connection of this name, as root unless `open_as` made it; opened at first use."""
    with _lock:
        if label not in _connections or _connections[label].closed:
            _connections[label] = Connection(os.getuid())
        return _connections[label]


def open_as(label: str, uid: int, groups: list[int] | None = None) -> str:
    """Open a connection as another user, and in these groups only if any are given. Returns its unique name."""
    with _lock:
        _connections[label] = Connection(uid, groups)
        return _connections[label].name


def close(label: str) -> None:
    with _lock:
        _connections.pop(label).close()


def close_all() -> None:
    """End every connection; the next call opens a fresh one, with no matches and no signals."""
    for label in list(_connections):
        close(label)


def call(
    path: str,
    interface: str,
    member: str,
    signature: str = "",
    body: list[Any] | None = None,
    destination: str = DAEMON,
    label: str = "main",
    timeout: float = 120.0,
) -> Reply:
    """Call a method and wait for the reply or the error."""
    return connection(label).call(destination, path, interface, member, signature, body, timeout)


def start(member: str, signature: str = "", body: list[Any] | None = None, label: str = "main") -> int:
    """Call a method of the Manager and do not wait; the answer is for `finish`."""
    return connection(label).send(DAEMON, ROOT, MANAGER, member, signature, body or [])


def finish(serial: int, label: str = "main", timeout: float = 120.0) -> Reply:
    return connection(label).reply(serial, timeout)


def stage(
    nqn: str,
    namespace: str,
    addresses: list[str],
    path: str,
    options: dict[str, Any] | None = None,
    timeout: float = 120.0,
) -> Reply:
    return call(ROOT, MANAGER, "Stage", "ssassa{sv}", [nqn, namespace, addresses, path, options or {}], timeout=timeout)


def unstage(path: str, options: dict[str, Any] | None = None, timeout: float = 120.0) -> Reply:
    return call(ROOT, MANAGER, "Unstage", "sa{sv}", [path, options or {}], timeout=timeout)


def disconnect(nqn: str, options: dict[str, Any] | None = None, timeout: float = 120.0) -> Reply:
    return call(ROOT, MANAGER, "Disconnect", "sa{sv}", [nqn, options or {}], timeout=timeout)


def properties(path: str, interface: str) -> dict[str, Any]:
    """All properties of an object's interface."""
    reply = call(path, PROPERTIES, "GetAll", "s", [interface])
    if reply["error"]:
        raise LookupError(f"{reply['error']}: {reply['message']}")
    values: dict[str, Any] = reply["body"][0]
    return values


def managed_objects() -> dict[str, dict[str, dict[str, Any]]]:
    reply = call(ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
    if reply["error"]:
        raise LookupError(f"{reply['error']}: {reply['message']}")
    objects: dict[str, dict[str, dict[str, Any]]] = reply["body"][0]
    return objects


def encode_label(label: str) -> str:
    """A name as a part of an object path, as sd_bus_path_encode does."""
    if not label:
        return "_"
    raw = label.encode()
    return "".join(
        chr(byte)
        if chr(byte).isascii() and (chr(byte).isalpha() or (index and chr(byte).isdigit()))
        else f"_{byte:02x}"
        for index, byte in enumerate(raw)
    )


def subscribe(rule: str = f"type='signal',sender='{DAEMON}'", label: str = "main") -> int:
    """Receive signals from now on. Returns the mark that `signals` and `wait_signal` take as `since`."""
    reply = call("/", DBUS, "AddMatch", "s", [rule], destination=DBUS, label=label)
    if reply["error"]:
        raise ValueError(reply["message"])
    return mark(label)


def mark(label: str = "main") -> int:
    return len(connection(label).signals)


def signals(since: int = 0, label: str = "main") -> list[Signal]:
    return connection(label).signals[since:]


def wait_signal(member: str, path: str = "", since: int = 0, label: str = "main", timeout: float = 30.0) -> Signal:
    """The first signal of this name (from this object, if given) after the mark, waiting for it."""
    return connection(label).wait_signal(member, path, since, timeout)


def send_hex(data: str, label: str) -> bool:
    """Send bytes as they are. Returns whether the bus still answers on this connection."""
    used = connection(label)
    try:
        used.send_bytes(bytes.fromhex(data))
        return not used.call(DBUS, "/", DBUS, "GetId", timeout=10.0)["error"]
    except OSError:
        return False


def send_message(
    kind: int,
    path: str,
    interface: str,
    member: str,
    signature: str = "",
    body: list[Any] | None = None,
    flags: int = 0,
    destination: str = DAEMON,
    label: str = "main",
) -> None:
    """Send a message of any type: an unexpected reply, a signal meant for one, a call that wants no reply."""
    used = connection(label)
    fields: dict[int, Any] = {wire.PATH: path, wire.INTERFACE: interface, wire.MEMBER: member}
    if destination:
        fields[wire.DESTINATION] = destination
    serial = next(used._serials)
    used.send_bytes(wire.message(kind, serial, fields, signature, body or [], flags))


def wait_owner(owned: bool, timeout: float = 60.0) -> None:
    """Wait until the daemon's name has an owner, or has none."""
    connection()
    since = subscribe(f"type='signal',sender='{DBUS}',member='NameOwnerChanged',arg0='{DAEMON}'")
    has = call("/", DBUS, "NameHasOwner", "s", [DAEMON], destination=DBUS)["body"][0]
    deadline = time.monotonic() + timeout
    while bool(has) != owned:
        signal = connection().wait_signal("NameOwnerChanged", "", since, deadline - time.monotonic())
        since = signal["number"] + 1
        has = signal["body"][2] if signal["body"][0] == DAEMON else has
