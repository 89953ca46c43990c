"""The main job, shown on a real kernel: `python3 -m tests.vm.demo` (or `make demo`).

What is printed as a command is run as it stands, in a guest; what follows it is its output, all of it. Each answer is
held against what it should be, and the first one that is not ends the demo with status 1.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

from .guest import target
from .guest.bus import encode_label
from .harness import SUITES, Guest, GuestError
from .harness.host import timed

ROOT = Path(__file__).parents[2]
PACKAGE = "/var/tmp/nvmeofd.deb"
NQN = "nqn.2026-11.org.example:shelf1"
WIDTH = 100
COMMAND_SECONDS = 120.0

MANAGER = "busctl call org.nvmeofd1 /org/nvmeofd1 org.nvmeofd1.Manager"
SUBSYSTEM = f"/org/nvmeofd1/subsystem/{encode_label(NQN)}"
UUIDS = {f"vol{nsid}": target.namespace_uuid(NQN, nsid) for nsid in (1, 2)}

TWO_LIVE_PATHS = r"tcp traddr=127\.0\.0\.1,.* live(.|\n)*tcp traddr=127\.0\.0\.2,.* live"


class Unexpected(Exception):
    """An answer is not what it should be."""


class Show:
    """Prints a transcript of commands in a guest, and checks it on the way."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._chapter = 0

    def chapter(self, title: str) -> None:
        self._chapter += 1
        head = f"── {self._chapter}. {title} "
        print(f"\n{head}{'─' * (WIDTH - len(head))}")

    def tell(self, text: str) -> None:
        print(f"\n{text}")

    def run(self, line: str, expect: str = "", *, status: int = 0, absent: str = "") -> re.Match[str]:
        """Run a shell line. Its output has to match `expect` somewhere, and `absent` (if given) nowhere."""
        print(f"  # {line}", flush=True)
        result = self._guest.run(line, check=False, timeout=COMMAND_SECONDS)
        output = result.out + result.err
        for printed in output.splitlines():
            print(f"  {printed}".rstrip())
        if result.rc != status:
            raise Unexpected(f"the command ended with status {result.rc}, not {status}")
        if absent and (found := re.search(absent, output)):
            raise Unexpected(f"the output has {found[0]!r}, and should not")
        match = re.search(expect, output, re.MULTILINE)
        if match is None:
            raise Unexpected(f"the output does not match {expect!r}")
        return match

    def stage(self, volume: str, expect: str, options: str = "0") -> str:
        """Stage one of the volumes; returns its device."""
        match = self.run(
            f"{MANAGER} Stage 'ssassa{{sv}}' \\\n"
            f"        {NQN} uuid.{UUIDS[volume]} \\\n"
            f"        2 tcp://127.0.0.1:4420 tcp://127.0.0.2:4420 /srv/{volume} {options}",
            rf'^os "/org/nvmeofd1/volume/_2fsrv_2f{volume}" "(?P<device>{expect})"$',
        )
        return match["device"]

    def unstage(self, volume: str, *, disconnected: bool) -> None:
        self.run(f"{MANAGER} Unstage 'sa{{sv}}' /srv/{volume} 0", f"^b {'true' if disconnected else 'false'}$")

    def users(self, expect: str) -> None:
        self.run(f"busctl call org.nvmeofd1 {SUBSYSTEM} \\\n        org.nvmeofd1.Subsystem ListUsers", expect)


def install(show: Show) -> None:
    show.chapter("Install the package")
    show.tell("The service comes up with it. It needs no configuration.")
    show.run(f"dpkg --install {PACKAGE}", r"^Setting up nvmeofd")
    show.run("systemctl is-active nvmeofd.service", r"^active$")
    show.run("busctl get-property org.nvmeofd1 /org/nvmeofd1 org.nvmeofd1.Manager Version", r'^s "\d')


def stage_two(show: Show) -> tuple[str, str]:
    show.chapter("Stage two volumes of one subsystem, over two paths")
    show.tell(
        f"{NQN} is a target on this machine's own network: NVMe/TCP at 127.0.0.1 and 127.0.0.2.\n"
        "Stage connects both, waits for the namespace with this UUID, formats it (asked for, and it is blank: that is\n"
        "proven first), and mounts it. The answer is the volume's object and its device of the moment."
    )
    formatted = "1 format s if-empty"
    first = show.stage("vol1", r"/dev/nvme\d+n\d+", formatted)
    show.tell("The second volume finds its subsystem connected and uses it.")
    second = show.stage("vol2", r"/dev/nvme\d+n\d+", formatted)
    show.tell("One disk for each volume, whatever the number of paths; mounted where it was asked for.")
    show.run(
        "lsblk --output NAME,SIZE,TYPE,MOUNTPOINTS /dev/nvme*n?",
        r"disk\s+/srv/vol[12]\s(.|\n)*disk\s+/srv/vol[12]\s",
    )
    show.tell("Mounted with _netdev: at shutdown systemd unmounts it while there is still a network.")
    show.run(
        "systemctl show --property=After --value srv-vol1.mount | tr ' ' '\\n' | grep remote-fs",
        "^remote-fs-pre.target$",
    )
    show.run("nvme list-subsys", TWO_LIVE_PATHS)
    show.tell("What the daemon shows of it: an object for each subsystem and each staged volume.")
    show.run("busctl tree --list org.nvmeofd1", rf"{SUBSYSTEM}\n(.|\n)*volume/_2fsrv_2fvol2")
    return first, second


def write(show: Show) -> None:
    show.chapter("Write data")
    show.run("echo 'hello, volume 1' > /srv/vol1/greeting && cp /etc/services /srv/vol2/ && sync")
    show.run("df --human-readable --output=source,size,used,target /srv/vol1 /srv/vol2", "/srv/vol1(.|\n)*/srv/vol2")


def unstage_one(show: Show, second: str) -> None:
    show.chapter("Unstage one of them")
    show.tell("The answer, false: unmounted, and the subsystem was not disconnected.")
    show.unstage("vol1", disconnected=False)
    show.tell("Why not? ListUsers asks the kernel who uses the subsystem: here, the other volume.")
    show.users(rf'^a\(sss\) 1 "mount" "{second}" "/srv/vol2"$')
    show.run("nvme list-subsys", TWO_LIVE_PATHS)
    show.run("ls /srv", r"^vol2$", absent="vol1")


def refused(show: Show, second: str) -> None:
    show.chapter("A Disconnect that is refused")
    show.tell("Now the whole subsystem is to go. Disconnect refuses (org.nvmeofd1.Error.InUse) and names the users.")
    show.run(
        f"{MANAGER} Disconnect 'sa{{sv}}' {NQN} 0",
        rf"^Call failed: {re.escape(NQN)} is in use: mount {second} \(/srv/vol2\)$",
        status=1,
    )
    show.tell("Nothing happened to the volume.")
    show.run("cmp /etc/services /srv/vol2/services && echo unharmed", r"^unharmed$")


def private_mount(show: Show, first: str) -> None:
    show.chapter("A mount that nobody can see")
    show.tell(
        "Somebody mounts volume 1 in a mount namespace of his own, as containers do. (A new one starts with copies of\n"
        "all mounts, which would hold volume 2 as well, so he lets go of that first.)"
    )
    show.run(
        "systemd-run --quiet --unit=stranger --property=Type=notify --property=NotifyAccess=all \\\n"
        f"        unshare --mount sh -c 'umount /srv/vol2 && mount {first} /mnt && systemd-notify --ready && \\\n"
        "        exec sleep infinity'"
    )
    show.tell("The host's mount table does not have it.")
    show.run(f"findmnt {first} || echo 'not mounted'", r"^not mounted$")
    show.tell(
        "Unstage of volume 2 takes away the last user that can be seen. Yet the subsystem stays: before the daemon\n"
        "deletes anything it claims every namespace for itself, and the kernel does not grant that for a disk that\n"
        "is mounted, no matter where."
    )
    show.unstage("vol2", disconnected=False)
    show.users(rf'^a\(sss\) 1 "claim" "{first}" "mounted at /mnt in the mount namespace of pid \d+ ')
    show.tell("The stranger can still read what was written.")
    inside = "nsenter --mount --target $(systemctl show --value --property=MainPID stranger)"
    show.run(f"{inside} cat /mnt/greeting", r"^hello, volume 1$")
    show.tell("Once he is gone nothing uses the subsystem, and the daemon disconnects it, within 30 seconds.")
    show.run(f"{inside} umount /mnt && systemctl stop stranger")
    show.run(f"udevadm wait --removed --timeout=60 {first} && echo disconnected", r"^disconnected$")


def last(show: Show) -> None:
    show.chapter("Stage again, and unstage the last user")
    show.tell("The data is there: nothing was formatted, and nothing needed to be.")
    show.stage("vol1", r"/dev/nvme\d+n\d+")
    show.run("cat /srv/vol1/greeting", r"^hello, volume 1$")
    show.tell("Nothing else uses the subsystem now. The answer, true: unmounted and disconnected.")
    show.unstage("vol1", disconnected=True)


def nothing_left(show: Show) -> None:
    show.chapter("Nothing is left")
    show.tell("No controllers, no disks, no staging paths, no records of the daemon, no objects.")
    show.run("ls --almost-all /sys/class/nvme /srv /run/nvmeofd", r"\A/run/nvmeofd:\n\n/srv:\n\n/sys/class/nvme:\n\Z")
    show.run("busctl tree --list org.nvmeofd1", r"^/org/nvmeofd1$", absent="subsystem/|volume/")
    show.tell("The daemon's own account of all this:")
    show.run("journalctl --unit=nvmeofd.service --output=cat --identifier=nvmeofd", "is ready")


def perform(guest: Guest) -> None:
    show = Show(guest)
    install(show)
    first, second = stage_two(show)
    write(show)
    unstage_one(show, second)
    refused(show, second)
    private_mount(show, first)
    last(show)
    nothing_left(show)


def package() -> Path:
    built = sorted((ROOT / "build" / "deb").glob("nvmeofd_*_all.deb"), key=lambda path: path.stat().st_mtime)
    if not built:
        raise Unexpected("there is no package: run make deb first")
    return built[-1]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.vm.demo", description="The main job, shown in a guest.")
    parser.add_argument("--suite", choices=list(SUITES), default="debian13", help="Debian release of the guest")
    arguments = parser.parse_args()
    suite = SUITES[arguments.suite]
    try:
        deb = package()
        with timed(f"starting a Debian {suite.number} guest with an NVMe/TCP target"):
            guest = Guest.start(suite)
        with guest:
            guest.call(target.setup)
            guest.call(target.add_subsystem, NQN, 2, [1, 2])
            guest.write(PACKAGE, deb.read_bytes())
            start = time.monotonic()
            try:
                perform(guest)
            except Unexpected:
                journal = guest.run("journalctl --unit=nvmeofd.service --no-pager --lines=60", check=False)
                print(f"\nthe daemon's journal:\n{journal.out}", flush=True)
                raise
            print(f"\nAll of it went as it should, in {time.monotonic() - start:.0f} s.")
    except (Unexpected, GuestError) as error:
        print(f"\nNOT AS IT SHOULD BE: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
