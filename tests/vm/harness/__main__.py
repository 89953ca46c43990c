"""Command line: `python3 -m tests.vm.harness build | run | shell | measure`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .errors import GuestError
from .guest import Guest
from .host import say, timed
from .image import build_image
from .recipe import SUITES


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.vm.harness", description="Guests for tests on a real kernel."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    build = verbs.add_parser("build", help="build images and boot them once, so that later runs start in seconds")
    build.add_argument("suites", nargs="*", choices=[[], *SUITES], help="default: all")
    for verb, text in (
        ("run", "run one command in a fresh guest"),
        ("shell", "run lines from the terminal in a fresh guest"),
        ("measure", "time what tests spend on a guest"),
    ):
        command = verbs.add_parser(verb, help=text)
        command.add_argument("--suite", choices=list(SUITES), default="debian13")
        command.add_argument("--deb", type=Path, help="install this package first")
        if verb == "run":
            command.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    try:
        if arguments.verb == "build":
            for name in arguments.suites or SUITES:
                Guest.start(SUITES[name]).close()
            return 0
        return _in_guest(arguments)
    except GuestError as error:
        say(str(error))
        return 1


def _in_guest(arguments: argparse.Namespace) -> int:
    suite = SUITES[arguments.suite]
    build_image(suite)
    with timed(f"starting a Debian {suite.number} guest"):
        guest = Guest.start(suite)
    with guest:
        if arguments.deb is not None:
            with timed(f"installing {arguments.deb}"):
                guest.write("/var/tmp/package.deb", arguments.deb.read_bytes())
                guest.run(["dpkg", "--install", "/var/tmp/package.deb"], timeout=180.0)
        if arguments.verb == "measure":
            return _measure(guest)
        if arguments.verb == "run":
            return _show(guest, " ".join(arguments.command))
        return _shell(guest)


def _show(guest: Guest, line: str) -> int:
    result = guest.run(line, check=False, timeout=600.0)
    sys.stdout.write(result.out)
    sys.stdout.flush()
    sys.stderr.write(result.err)
    return result.rc


def _shell(guest: Guest) -> int:
    """Each line is a shell of its own: there is no terminal in the guest, so nothing interactive works."""
    say("each line runs as a shell command in the guest, as root; end with ^D")
    status = 0
    while True:
        if sys.stdin.isatty():
            sys.stderr.write("guest# ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return status
        if line.strip():
            try:
                status = _show(guest, line)
            except GuestError as error:
                say(str(error))
                status = 1


def _measure(guest: Guest) -> int:
    def median(action: Callable[[], object], times: int) -> float:
        taken = []
        for _ in range(times):
            start = time.monotonic()
            action()
            taken.append(time.monotonic() - start)
        return sorted(taken)[times // 2]

    print(f"accelerator          {guest.accel}")
    print(f"agent round trip     {median(lambda: guest.exec('result = 1'), 200) * 1000:8.1f} ms")
    print(f"run /bin/true        {median(lambda: guest.run(['true']), 30) * 1000:8.1f} ms")
    print(f"take a snapshot      {median(lambda: guest.snapshot('measure'), 5) * 1000:8.1f} ms")
    print(f"restore a snapshot   {median(lambda: guest.restore('measure'), 5) * 1000:8.1f} ms")
    print(guest.run(["systemd-analyze"]).out, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
