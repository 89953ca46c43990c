"""The host's end of the agent's port: requests out, replies matched by number, found again after a restore."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any

from .errors import GuestCallError, GuestDied, GuestError, GuestTimeout

Reply = dict[str, Any]
AGENT_SOURCE = Path(__file__).with_name("agent.py")


class Channel:
    """One reader thread gives every reply to the future waiting for it: any thread may have requests under way."""

    def __init__(self, sock: socket.socket, explain: Callable[[str], str]) -> None:
        self._sock = sock
        self._explain = explain
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Future[Any]] = {}
        self._lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._ended: str | None = None
        self.stub = threading.Event()  # a freshly booted guest asks for its agent
        self._ready: Future[Any] = Future()
        self._waiting[0] = self._ready
        self._reader = threading.Thread(target=self._read, name="guest-channel", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        buffer = bytearray()
        while True:
            try:
                received = self._sock.recv(1 << 16)
            except OSError:
                received = b""
            if not received:
                break
            searched = len(buffer)
            buffer += received
            while (end := buffer.find(b"\n", searched)) >= 0:
                line = bytes(buffer[:end])
                del buffer[: end + 1]
                searched = 0
                self._take(line)
        self.abandon("the guest ended")

    def _take(self, line: bytes) -> None:
        if line == b"stub":
            self.stub.set()
        try:
            reply = json.loads(line)
            number = reply["id"]
        except (ValueError, TypeError, KeyError):
            return  # an empty line, or one cut by a snapshot
        with self._lock:
            future = self._waiting.pop(number, None)
        if future is None:
            return  # asked for before a snapshot was loaded
        error = reply.get("error")
        if error is None:
            future.set_result(reply.get("value"))
        else:
            future.set_exception(
                GuestCallError(error["kind"], error["message"], error["errno"], error["traceback"]),
            )

    def abandon(self, why: str, *, ended: bool = True) -> None:
        """Fail whatever is under way: the guest that was asked is gone, or was replaced by its snapshot."""
        with self._lock:
            if ended:
                self._ended = why
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.set_exception(GuestDied(self._explain(why)) if ended else GuestError(why))

    def bootstrap(self, timeout: float) -> None:
        """Give the stub in a freshly booted guest its agent."""
        deadline = time.monotonic() + timeout
        while not self.stub.wait(0.5):  # wakes up only to notice that the guest died
            if self._ended is not None:
                raise GuestDied(self._explain(self._ended))
            if time.monotonic() > deadline:
                raise GuestTimeout(self._explain(f"the guest did not start its agent within {timeout} s"))
        source = AGENT_SOURCE.read_bytes()
        self._send(b"%d\n" % len(source) + source)
        self.wait(self._ready, timeout, "the agent to start")

    def sync(self, timeout: float) -> None:
        """After a snapshot was loaded: find the agent again, and set the guest's clock to now."""
        self._send(b"\n")
        self.wait(self.submit({"op": "sync", "now": time.time()}), timeout, "the restored guest")

    def submit(self, request: dict[str, Any]) -> Future[Any]:
        number = next(self._numbers)
        future: Future[Any] = Future()
        with self._lock:
            if self._ended is not None:
                raise GuestDied(self._explain(self._ended))
            self._waiting[number] = future
        self._send(json.dumps({"id": number, **request}).encode() + b"\n")
        return future

    def _send(self, data: bytes) -> None:
        try:
            with self._write_lock:
                self._sock.sendall(data)
        except OSError as error:
            raise GuestDied(self._explain("the guest takes no requests")) from error

    def wait(self, future: Future[Any], timeout: float, what: str) -> Any:
        try:
            return future.result(timeout)
        except FutureTimeout as error:
            raise GuestTimeout(self._explain(f"no answer within {timeout} s: {what}")) from error
