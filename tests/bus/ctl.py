"""nvmeofctl as its users run it: a process of its own, on a private bus."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.bus.harness import REPOSITORY, PrivateBus

SCRIPT = REPOSITORY / "bin" / "nvmeofctl"


def environment(address: str, **more: str) -> dict[str, str]:
    """Of a user of the bus at ``address``, who has no terminal and no language of his own."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "VIRTUAL_ENV")}
    made = {"PYTHONPATH": str(REPOSITORY), "DBUS_SYSTEM_BUS_ADDRESS": address, "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    return {**kept, **made, **more}


@asynccontextmanager
async def running(
    bus: PrivateBus | str,
    *words: str,
    stdout: int | None = None,
    stderr: int | None = None,
    env: dict[str, str] | None = None,
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The command, started; killed if it still runs in the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(SCRIPT),
        *words,
        env=environment(bus if isinstance(bus, str) else bus.address, **(env or {})),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE if stdout is None else stdout,
        stderr=asyncio.subprocess.PIPE if stderr is None else stderr,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        # Its pipes are read to their ends, so that nothing of them is left.
        await process.communicate()


async def ctl(bus: PrivateBus | str, *words: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """The command, run to its end."""
    async with running(bus, *words, env=more) as process:
        out, err = await process.communicate(stdin.encode())
    assert process.returncode is not None
    assert not [line for line in err.splitlines() if line.startswith(b"Traceback")], err.decode()
    return subprocess.CompletedProcess(words, process.returncode, out.decode(), err.decode())


async def ctl_json(bus: PrivateBus, *words: str) -> Any:
    done = await ctl(bus, *words, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    return json.loads(done.stdout)
