"""The agent: runs inside the guest, does what the host asks for over a virtio serial port, one JSON object per line.

It stays in one process with one namespace, so a check costs the round trip and not the start of an interpreter (which
takes seconds under emulation), and it is part of every snapshot, so a restored guest answers at once. The host sends
this file at boot; it has to stand alone and to run on the oldest Python of any guest.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from typing import Any

HOME = "/run/vm"  # the package `guest` (helper modules from the host) lives below it
PACKAGE = "guest"

Request = dict[str, Any]
Reply = dict[str, Any]


class Agent:
    def __init__(self, port: int) -> None:
        self._port = port
        self._lock = threading.Lock()
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._namespace: dict[str, Any] = {"__name__": "vm"}
        sys.path.insert(0, HOME)

    def serve(self) -> None:
        buffer = bytearray()
        while True:
            received = os.read(self._port, 1 << 16)
            if not received:  # no host: only while a machine is being torn down
                threading.Event().wait(0.1)
                continue
            searched = len(buffer)
            buffer += received
            while (end := buffer.find(b"\n", searched)) >= 0:
                line = bytes(buffer[:end])
                del buffer[: end + 1]
                searched = 0
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            request = json.loads(line)
            identity = request["id"]
        except (ValueError, TypeError, KeyError):
            return  # half a line from before a snapshot was loaded
        if request["op"] == "sync":
            time.clock_settime(time.CLOCK_REALTIME, request["now"])
            self.send({"id": identity, "value": None})
        else:
            threading.Thread(target=self._handle, args=(request,), name=f"request-{identity}", daemon=True).start()

    def _handle(self, request: Request) -> None:
        reply: Reply = {"id": request["id"]}
        try:
            reply["value"] = getattr(self, f"do_{request['op']}")(request)
            self.send(reply)
        except BaseException as error:  # noqa: BLE001 - the host shall hear of it, whatever it is
            reply.pop("value", None)
            reply["error"] = {
                "kind": type(error).__name__,
                "message": str(error),
                "errno": getattr(error, "errno", None),
                "traceback": traceback.format_exc(),
            }
            self.send(reply)

    def send(self, reply: Reply) -> None:
        # The line starts with a newline too: what a snapshot cut short before it is then a line of its own.
        data = memoryview(b"\n" + json.dumps(reply).encode() + b"\n")
        with self._lock:
            while data:
                data = data[os.write(self._port, data) :]

    def do_run(self, request: Request) -> Reply:
        """Run a program. Its process group is killed at the deadline, so that a pipeline does not outlive it."""
        process = subprocess.Popen(
            request["argv"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=request["cwd"],
            env={**os.environ, **request["env"]},
            start_new_session=True,
        )
        timed_out = False
        try:
            out, err = process.communicate(base64.b64decode(request["input"]), timeout=request["timeout"])
        except subprocess.TimeoutExpired:
            timed_out = True
            os.killpg(process.pid, signal.SIGKILL)
            out, err = self._rest(process)
        return {
            "rc": process.poll(),
            "out": base64.b64encode(out).decode(),
            "err": base64.b64encode(err).decode(),
            "timed_out": timed_out,
        }

    def _rest(self, process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
        """What a killed program printed. One in state D takes no signal: it is left behind rather than waited for."""
        try:
            return process.communicate(timeout=2.0)
        except subprocess.TimeoutExpired as error:
            return error.stdout or b"", error.stderr or b""

    def do_read(self, request: Request) -> str:
        with open(request["path"], "rb") as file:
            return base64.b64encode(file.read()).decode()

    def do_write(self, request: Request) -> None:
        path = request["path"]
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(base64.b64decode(request["data"]))
        os.chmod(path, request["mode"])

    def do_load(self, request: Request) -> None:
        """Take the helper modules and forget older versions of them; their state goes too."""
        folder = os.path.join(HOME, PACKAGE)
        os.makedirs(folder, exist_ok=True)
        for name, source in request["modules"].items():
            with open(os.path.join(folder, f"{name}.py"), "w", encoding="utf-8") as file:
                file.write(source)
        for name in [name for name in sys.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        for name in request["modules"]:
            importlib.import_module(PACKAGE if name == "__init__" else f"{PACKAGE}.{name}")

    def do_call(self, request: Request) -> Any:
        """Call a function of a helper module; arguments and result are JSON."""
        function = getattr(importlib.import_module(f"{PACKAGE}.{request['module']}"), request["function"])
        return function(*request["args"], **request["kwargs"])

    def do_exec(self, request: Request) -> Any:
        """Run source in the lasting namespace; what it leaves in `result` is the answer."""
        self._namespace["result"] = None
        exec(compile(request["source"], "<from the host>", "exec"), self._namespace)
        return self._namespace["result"]


if __name__ == "__main__":
    agent = Agent(globals()["PORT"])
    agent.send({"id": 0, "value": "ready"})
    agent.serve()
