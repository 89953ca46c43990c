"""The real core on the kernel of this host, in a mount namespace of its own, while events rain down.

`unshare --mount --propagation private python -m tests.bus.storm MOUNTS UEVENTS [RECEIVE_BUFFER]` prints one line of
JSON, see Report. All of it happens twice, so that what grows can be told from what is used again.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nvmeofd.bus.paths import ROOT
from nvmeofd.bus.service import BusService
from nvmeofd.cache import MountCache
from nvmeofd.config import Config
from nvmeofd.journal import DirectoryStore, Journal
from nvmeofd.kernel import uevents as uevents_module
from nvmeofd.kernel.linux import LinuxKernel
from nvmeofd.kernel.roots import Roots
from nvmeofd.operations.engine import Engine
from tests.bus.harness import MANAGER, REPOSITORY, Client, PrivateBus, client

ROUNDS = 2
KEPT = 17  # mounts that stay


def uevent_file() -> Path | None:
    """What makes events of a block device, best of one that is not in use. None: there is no such device."""
    names = sorted(Path("/sys/class/block").iterdir(), key=lambda path: (not path.name.startswith("loop"), path.name))
    return names[0] / "uevent" if names else None


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
per = uevents // mounts
for _ in range(int(sys.argv[5])):
    for number in range(int(sys.argv[6]), mounts):
        check(libc.mount(tree, b"%s/%d" % (tree, number % 100), None, 4096, None))
        send(per)
    send(uevents - per * (mounts - int(sys.argv[6])))
    print("made", flush=True)
    sys.stdin.readline()
    for number in reversed(range(int(sys.argv[6]), mounts)):
        check(libc.umount2(b"%s/%d" % (tree, number % 100), 0))
    print("gone", flush=True)
    sys.stdin.readline()
"""


@dataclass
class Report:
    """What happened, with times in milliseconds and memory in KiB."""

    answered: int = 0  # calls during the storms
    slowest: float = 0.0  # of their answers
    stood_still: float = 0.0  # the longest that the loop did not come round, whoever had the processor
    worked: float = 0.0  # the longest that this process itself worked without coming round
    memory: list[int] = field(default_factory=list)  # after each round
    counters: Mapping[str, int] = field(default_factory=dict)


class Pulse:
    """Beats while the loop comes round."""

    PERIOD = 0.005  # seconds

    def __init__(self, report: Report) -> None:
        self._report = report
        self._start()

    def _start(self) -> None:
        self._began, self._worked = time.monotonic(), time.thread_time()
        self._timer = asyncio.get_running_loop().call_later(self.PERIOD, self._beat)

    def _beat(self) -> None:
        late = time.monotonic() - self._began - self.PERIOD
        self._report.stood_still = max(self._report.stood_still, late * 1000)
        self._report.worked = max(self._report.worked, (time.thread_time() - self._worked) * 1000)
        self._start()

    def stop(self) -> None:
        self._timer.cancel()


async def main(mounts: int, uevents: int, buffer: int) -> Report:
    if buffer:
        uevents_module._RECEIVE_BUFFER = buffer
    tree = Path(tempfile.mkdtemp(prefix="storm-", dir="/run"))
    for number in range(100):
        (tree / str(number)).mkdir()
    subprocess.run(["mount", "-n", "--bind", tree, tree], check=True)
    # An identity of its own: this machine's is not for a test to make.
    with PrivateBus() as bus, LinuxKernel(Roots(etc_nvme=str(tree / "98"))) as kernel:
        service = await BusService.connect(bus.address)
        engine = Engine(kernel=kernel, journal=Journal(DirectoryStore(tree / "99")), config=Config(), observer=service)
        await engine.start()
        service.export(engine)
        await service.own_name()
        async with client(bus) as caller:
            report = await storms(caller, engine, (tree, mounts, uevents), every_event=not buffer)
        await engine.drain()
        await service.close()
        await engine.close()
    return report


async def storms(caller: Client, engine: Engine, plan: tuple[Path, int, int], *, every_event: bool) -> Report:
    report = Report()
    arguments = [*map(str, plan), str(uevent_file()), str(ROUNDS), str(KEPT)]
    maker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", MAKER, *arguments, stdin=-1, stdout=-1, cwd=REPOSITORY
    )
    assert maker.stdin
    assert maker.stdout
    for number in range(1, ROUNDS + 1):
        for word in (b"made\n", b"gone\n"):
            pulse = Pulse(report)
            line = asyncio.ensure_future(maker.stdout.readline())
            while not line.done():
                await ask(caller, report)
            assert line.result() == word
            async with asyncio.timeout(60):
                while every_event and (await caller.get(ROOT, MANAGER, "Counters"))["events"] < number * plan[2]:
                    await ask(caller, report)
            pulse.stop()
            # Only the events that were on their way bring the cache up to date here, no question does.
            async with asyncio.timeout(30):
                while picture(engine._core.cache) != picture(fresh()):
                    await caller.get(ROOT, MANAGER, "Version")
            maker.stdin.write(b"\n")
        report.memory.append(memory())
    report.counters = await caller.get(ROOT, MANAGER, "Counters")
    assert await maker.wait() == 0
    return report


async def ask(caller: Client, report: Report) -> None:
    began = time.monotonic()
    assert await caller.get(ROOT, MANAGER, "Version")
    report.slowest = max(report.slowest, (time.monotonic() - began) * 1000)
    report.answered += 1


def memory() -> int:
    """Of this process, in KiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


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
    made, sent, *rest = map(int, sys.argv[1:])
    print(json.dumps(asdict(asyncio.run(main(made, sent, *(rest or [0]))))))
