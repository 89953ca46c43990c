"""How soon calls are answered while mounts and device events come and go by the thousand: `python3 -m bench.storm`.

Needs root. The mounts are made in a mount namespace of its own, and the events are those of a block device of this
host ("change", which means nothing). The answers are as late as the machine is busy with other things; the work
between two turns of the loop is the processor time of the daemon alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from .table import show

NAMESPACE = ("unshare", "--mount", "--propagation", "private")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m bench.storm", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mounts", type=int, default=10_000, help="mounts to make (default: %(default)s)")
    parser.add_argument("--uevents", type=int, default=20_000, help="device events to send (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="storms (default: %(default)s)")
    arguments = parser.parse_args()
    command = [*NAMESPACE, sys.executable, "-m", "tests.bus.storm", str(arguments.mounts), str(arguments.uevents)]
    reports = []
    for _ in range(arguments.repeats):
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        reports.append(json.loads(done.stdout))
    rows = [
        ("slowest answer", [report["slowest"] for report in reports]),
        ("loop stood still, at the longest", [report["stood_still"] for report in reports]),
        ("work between two turns, at the longest", [report["worked"] for report in reports]),
    ]
    show(f"{arguments.mounts} mounts and {arguments.uevents} device events come and go", rows)
    answered = sum(report["answered"] for report in reports)
    print(f"{answered} calls answered, at most {max(max(report['memory']) for report in reports) >> 10} MiB of memory")
    return 0


if __name__ == "__main__":
    sys.exit(main())
