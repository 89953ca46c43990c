"""The real core on the kernel of this host, in a mount namespace of its own, while events rain down.

`unshare --mount --propagation private python -m tests.bus.storm MOUNTS UEVENTS` prints one line of JSON: how many calls
were answered meanwhile, the longest time that one took, and the longest that the loop stood still (ms).
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nvmeofd.bus.paths import ROOT
from nvmeofd.bus.service import BusService
from nvmeofd.cache import MountCache
from nvmeofd.config import Config
from nvmeofd.journal import DirectoryStore, Journal
from nvmeofd.kernel.linux import LinuxKernel
from nvmeofd.operations.engine import Engine
from tests.bus.harness import MANAGER, REPOSITORY, PrivateBus, client

UEVENT = Path("/sys/class/block/loop0/uevent")

# Another process in the same mount namespace: the tree, how many mounts, and how many device events.
MAKER = """
import ctypes, os, sys
tree, mounts, uevents = sys.argv[1].encode(), int(sys.argv[2]), int(sys.argv[3])
libc = ctypes.CDLL(None, use_errno=True)
def check(status):
    if status: raise OSError(ctypes.get_errno(), "mount")
uevent = os.open(sys.argv[4], os.O_WRONLY) if uevents else -1
def send(count):
    for _ in range(count): os.write(uevent, b"change")
per = uevents // max(mounts, 1)
for number in range(mounts):
    check(libc.mount(tree, b"%s/%d" % (tree, number % 100), None, 4096, None))
    send(per)
send(uevents - per * mounts)
print("made", flush=True)
sys.stdin.readline()
for number in reversed(range(mounts)):
    if number >= 17: check(libc.umount2(b"%s/%d" % (tree, number % 100), 0))
print("gone", flush=True)
sys.stdin.readline()
"""


class Pulse:
    """How long the loop did not come round, at the longest."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._last = time.monotonic()
        self._beat()

    def _beat(self) -> None:
        now = time.monotonic()
        self.longest = max(self.longest, now - self._last - 0.005)
        self._last = now
        self._timer = asyncio.get_running_loop().call_later(0.005, self._beat)

    def stop(self) -> float:
        """Returns seconds."""
        self._timer.cancel()
        return self.longest


async def main(mounts: int, uevents: int) -> dict[str, float]:
    tree = Path(tempfile.mkdtemp(prefix="storm-", dir="/run"))
    for number in range(100):
        (tree / str(number)).mkdir()
    subprocess.run(["mount", "-n", "--bind", tree, tree], check=True)
    answered, slowest = 0, 0.0
    with PrivateBus() as bus, LinuxKernel() as kernel:
        service = await BusService.connect(bus.address)
        engine = Engine(kernel=kernel, journal=Journal(DirectoryStore(tree / "99")), config=Config(), observer=service)
        await engine.start()
        service.export(engine)
        await service.own_name()
        asker = await asyncio.create_subprocess_exec(
            sys.executable, "-c", MAKER, tree, str(mounts), str(uevents), UEVENT, stdin=-1, stdout=-1, cwd=REPOSITORY
        )
        assert asker.stdin
        assert asker.stdout
        async with client(bus) as caller:
            still = 0.0
            for word in (b"made\n", b"gone\n"):
                pulse = Pulse()
                line = asyncio.ensure_future(asker.stdout.readline())
                while not line.done():
                    began = time.monotonic()
                    assert await caller.get(ROOT, MANAGER, "Version")
                    slowest = max(slowest, time.monotonic() - began)
                    answered += 1
                assert line.result() == word
                async with asyncio.timeout(60):
                    while word == b"made\n" and (await caller.get(ROOT, MANAGER, "Counters"))["events"] < uevents:
                        pass
                still = max(still, pulse.stop())
                # Only the events that were on their way bring the cache up to date here, no question does.
                async with asyncio.timeout(30):
                    while picture(engine._core.cache) != picture(fresh()):
                        await caller.get(ROOT, MANAGER, "Version")
                asker.stdin.write(b"\n")
            counters = await caller.get(ROOT, MANAGER, "Counters")
        await asker.wait()
        await engine.drain()
        await service.close()
        await engine.close()
    return {
        "answered": answered,
        "slowest": round(slowest * 1000, 1),
        "stood still": round(still * 1000, 1),
        "events": counters["events"],
        "overflows": counters.get("overflows", 0),
    }


def fresh() -> MountCache:
    """A cache that has seen nothing but the table as it is now."""
    with LinuxKernel() as kernel:
        cache = MountCache(kernel)
        cache.refresh()
        return cache


def picture(cache: MountCache) -> dict[str, tuple[int, ...]]:
    """All that is mounted, by path."""
    paths = {mount.mount_point for mount in cache._by_line.values()}
    return {path: tuple(mount.mount_id for mount in cache.mounts_at(path)) for path in paths}


if __name__ == "__main__":
    subprocess.run(["mount", "-n", "-t", "tmpfs", "run", "/run"], check=True)
    print(json.dumps(asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))))
