"""What docs/getting-started.md and docs/operators-guide.md tell people to type, typed, on a real kernel."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .daemon import Daemon
from .guest import initiator
from .harness import Guest

DOCS = Path(__file__).parents[2] / "docs"
STARTED = (DOCS / "getting-started.md").read_text()
GUIDE = (DOCS / "operators-guide.md").read_text()
CONFIG = "/sys/kernel/config/nvmet"
FILE = "/var/tmp/vol1"
NQN = "nqn.2026-11.org.example:shelf1"
# In place of what is an example in the document. The guest has listeners of its own at ports 1 to 5.
HERE = {
    "192.0.2.1": "127.0.0.11",
    "192.0.2.2": "127.0.0.12",
    "/dev/vg0/vol1": FILE,
    "\nport=1\n": "\nport=11\n",
}


def here(text: str) -> str:
    for example, real in HERE.items():
        text = text.replace(example, real)
    return text


def block(document: str, head: str) -> str:
    """The block of code that begins with this line."""
    found = re.search(rf"(?ms)^```{re.escape(head)}\n(.*?)^```$", document)
    assert found is not None
    return here(found[1])


def typed(document: str, verb: str) -> tuple[str, str]:
    """The busctl command for a verb, and the line that is its answer."""
    found = re.search(rf"(?m)^    # (busctl .*?Manager {verb} (?:.*\\\n)*.*)\n    (.*)$", document)
    assert found is not None
    return here(found[1]), found[2]


@pytest.fixture(scope="module")
def daemon(guest: Guest) -> Daemon:
    return Daemon(guest)


@pytest.fixture
def exported(daemon: Daemon) -> Iterator[Guest]:
    """The target as its administrator is told to make it, and to take it away."""
    guest = daemon.guest
    host = guest.call(initiator.host_nqn)
    guest.run(f"truncate --size=320M {FILE}")
    guest.write("/var/tmp/target.sh", re.sub(r"(?m)^host=\S+", f"host={host}", block(STARTED, "sh target.sh")).encode())
    guest.run("sh /var/tmp/target.sh")
    yield guest
    guest.run(
        f"cd {CONFIG} && rm ports/11/subsystems/{NQN} ports/12/subsystems/{NQN} && rmdir ports/11 ports/12"
        f" && echo 0 >subsystems/{NQN}/namespaces/1/enable && rmdir subsystems/{NQN}/namespaces/1"
        f" && rm subsystems/{NQN}/allowed_hosts/{host} && rmdir subsystems/{NQN} hosts/{host} && rm {FILE}"
    )


def test_first_volume_and_a_report(exported: Guest) -> None:
    command, answer = typed(STARTED, "Stage")
    assert exported.run(command).out.strip() == answer
    assert exported.run("findmnt --noheadings --output FSTYPE /srv/vol1").out.strip() == "ext4"
    # Once more is fine.
    assert exported.run(command).out.strip() == answer

    exported.run(
        f"cd /var/tmp && cat >collect.sh <<'END'\n{block(GUIDE, 'sh collect.sh')}END\nsh collect.sh", timeout=60.0
    )
    report = exported.read("/var/tmp/nvmeofd-report.txt").decode()
    for part in ('"phase": "staged"', NQN, "/srv/vol1", "nvmeofd.service", "live", "/run/nvme/registry"):
        assert part in report

    command, answer = typed((DOCS.parent / "README.md").read_text(), "Unstage")
    assert exported.run(command).out.strip() == answer
    exported.run("rm /var/tmp/nvmeofd-report.txt /var/tmp/collect.sh /var/tmp/target.sh")


def test_unit_that_stages_and_one_that_waits_for_it(exported: Guest) -> None:
    stage, _ = typed(STARTED, "Stage")
    exported.write("/var/tmp/stage.sh", f"exec {stage}\n".encode())
    unit = re.sub(r"(?m)^ExecStart=.*", "ExecStart=/bin/sh /var/tmp/stage.sh", block(STARTED, "ini stage-vol1.service"))
    user = "[Service]\nExecStart=/bin/sh -c 'cd /srv/vol1 && exec sleep infinity'\n" + block(STARTED, "ini")
    exported.write("/run/systemd/system/stage-vol1.service", unit.encode())
    exported.write("/run/systemd/system/uses-vol1.service", user.encode())
    exported.run("systemctl daemon-reload && systemctl start uses-vol1.service", timeout=120.0)
    assert exported.run("systemctl is-active stage-vol1.service uses-vol1.service").out.split() == ["active"] * 2
    # Stopped in the reverse order: the program, then the mount, which its unit knew of before it was there.
    assert "uses-vol1.service" in exported.run("systemctl show --property=Before srv-vol1.mount").out
    exported.run("systemctl restart nvmeofd.service", timeout=120.0)
    assert exported.run("systemctl is-active stage-vol1.service uses-vol1.service").out.split() == ["active"] * 2
    exported.run("systemctl stop srv-vol1.mount uses-vol1.service", timeout=120.0)
    assert exported.run("findmnt /srv/vol1", check=False).rc != 0
    exported.run("systemctl stop stage-vol1.service")

    unstage, answer = typed((DOCS.parent / "README.md").read_text(), "Unstage")
    assert exported.run(unstage).out.strip() == answer
    exported.run("rm /run/systemd/system/*-vol1.service /var/tmp/stage.sh /var/tmp/target.sh; systemctl daemon-reload")
