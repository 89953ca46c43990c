"""How long one life of a volume takes: connect two paths, mount, unmount, disconnect: `python3 -m bench.cycle`.

In a guest, on a namespace that holds an ext4 already: through the daemon, through command-line tools, and as bare
system calls, which is the floor under both. The daemon is stopped while the others are timed.
"""

from __future__ import annotations

import argparse
import os
import sys
from statistics import median

from tests.vm.demo import package
from tests.vm.guest import bus, cycle, initiator, target
from tests.vm.harness import SUITES, Guest, GuestError
from tests.vm.harness.host import say
from tests.vm.pool import install

from .table import show

NQN = "nqn.2026-11.org.example:bench"
NSID = 1
ADDRESSES = ["127.0.0.1", "127.0.0.2"]
PATH = "/srv/bench"
NAMESPACE = f"uuid.{target.namespace_uuid(NQN, NSID)}"

Cycles = list[dict[str, float]]


def prepare(guest: Guest) -> None:
    """A target, the daemon, and an ext4 made by it."""
    guest.call(target.setup)
    guest.call(target.add_subsystem, NQN, 1, [1, 2])
    install(guest, package())
    guest.call(cycle.daemon, NQN, NAMESPACE, ADDRESSES, PATH, {"format": "if-empty"})


def run_cycles(guest: Guest, repeats: int) -> dict[str, Cycles]:
    """By name, in the order in which they are shown. Those that are compared take turns."""
    found: dict[str, Cycles] = {}
    guest.run(["systemctl", "stop", "nvmeofd.service"])
    guest.call(initiator.setup)
    for turn in range(repeats + 1):
        cycles = {
            "system calls": guest.call(cycle.system_calls, NQN, NSID, ADDRESSES, PATH),
            "nvme, blkid, mount, umount, findmnt": guest.call(cycle.tools, NQN, NSID, ADDRESSES, PATH),
        }
        for name, parts in cycles.items() if turn else ():  # the first turn warms up
            found.setdefault(name, []).append(parts)
    guest.run(["systemctl", "start", "nvmeofd.service"])
    for turn in range(repeats + 1):
        cycles = {
            "nvmeofd, fsck=false": guest.call(cycle.daemon, NQN, NAMESPACE, ADDRESSES, PATH, {"fsck": False}),
            "nvmeofd": guest.call(cycle.daemon, NQN, NAMESPACE, ADDRESSES, PATH),
            "nvmeofd, called by busctl": guest.call(cycle.daemon_by_busctl, NQN, NAMESPACE, ADDRESSES, PATH),
        }
        for name, parts in cycles.items() if turn else ():
            found.setdefault(name, []).append(parts)
    return found


def measure(guest: Guest, repeats: int) -> None:
    prepare(guest)
    found = run_cycles(guest, repeats)
    show("one cycle", [(name, [parts["all"] for parts in cycles]) for name, cycles in found.items()])
    print("\nmedian of each part, in ms")
    for name, cycles in found.items():
        parts = {part: median(one[part] for one in cycles) for part in cycles[0] if part != "all"}
        print(f"  {name}: {', '.join(f'{part} {value:.0f}' for part, value in parts.items())}")
    guest.call(bus.close_all)
    starts = [guest.call(cycle.restart) for _ in range(5)]
    memory = guest.call(cycle.memory)
    print("\nthe daemon, idle")
    print(f"  from its start to READY=1: {median(start['ready'] for start in starts):.0f} ms (median of {len(starts)})")
    print(f"  processor time until then: {median(start['processor'] for start in starts):.0f} ms")
    print(f"  resident memory: {memory['Rss'] / 1024:.1f} MiB, of which its own {memory['Pss'] / 1024:.1f} MiB (PSS)")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m bench.cycle", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", choices=list(SUITES), default="debian13", help="Debian release of the guest")
    parser.add_argument("--repeats", type=int, default=15, help="cycles of each kind (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        with Guest.start(SUITES[arguments.suite]) as guest:
            print(f"{arguments.suite} guest, {guest.accel}, on a host with {os.cpu_count()} processors")
            measure(guest, arguments.repeats)
    except GuestError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
