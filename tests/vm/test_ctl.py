"""nvmeofctl in a guest, as its package installs it: the main job, what it refuses, completion in bash."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from .daemon import BOTH
from .guest import bus, facts, service, target
from .harness import Guest
from .harness.guest import Result

NQN = "nqn.2026-11.org.example:ctl"
PATH = "/srv/it's vol1"
UUID = target.namespace_uuid(NQN, 1)

# Completion as bash does it: the words as bash cuts them, and what is offered for the last one.
COMPLETE = """
. /usr/share/bash-completion/completions/nvmeofctl
COMP_LINE={line}
COMP_POINT=${{#COMP_LINE}}
COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
compopt() {{ :; }}
_nvmeofctl
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


class Ctl:
    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    def __call__(self, *words: str, code: int = 0) -> Result:
        done = self.guest.run(["nvmeofctl", *words], check=False, timeout=120.0, env={"LC_ALL": "C.UTF-8"})
        assert done.rc == code, done.err
        return done

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json").out)

    def stage(self, *options: str) -> str:
        self("stage", NQN, f"uuid.{UUID}", *BOTH, PATH, *options)
        device: str = self.json("show", PATH)["Device"]
        return device

    def completed(self, *words: str, line: str) -> list[str]:
        script = COMPLETE.format(line=shlex.quote(line), words=" ".join(map(shlex.quote, words)))
        return self.guest.run(["bash", "-c", script]).out.split("\n")[:-1]


@pytest.fixture(scope="module")
def ctl(guest: Guest) -> Ctl:
    guest.call(target.add_subsystem, NQN, 1, [1, 2])
    guest.snapshot("ctl")
    return Ctl(guest)


def test_the_main_job(ctl: Ctl) -> None:
    done = ctl("stage", NQN, UUID, *BOTH, PATH, code=9)
    assert "NoFilesystem" in done.err
    assert "--format=if-empty" in done.err
    assert ctl.guest.call(facts.controllers) == []

    done = ctl("stage", NQN, UUID, *BOTH, PATH, "--format=if-empty", "--mount-options=noatime")
    device = ctl.json("show", PATH)["Device"]
    assert done.out == f"Staged {device} at {PATH}\n"
    assert "formatting" in done.err
    (volume,) = ctl.json("list")
    assert (volume["StagingPath"], volume["Filesystem"], volume["State"]) == (PATH, "ext4", "staged")
    assert PATH in ctl("list").out.splitlines()[1]
    assert "noatime" in ctl.guest.run(["findmnt", "--noheadings", "--output=OPTIONS", PATH]).out

    lines = ctl("status", NQN).out.splitlines()
    assert lines[0].startswith(f"{NQN}  nvme-subsys")
    assert lines[0].endswith("connected by nvmeofd")
    assert [line.split()[-1] for line in lines[1:3]] == ["live", "live"]
    assert device in lines[3]
    assert lines[4] == f"  └─staged at {PATH}  ext4  staged"
    (shown,) = ctl.json("status")
    assert [one["Address"] for one in shown["Controllers"]] == list(BOTH)
    assert [(one["Kind"], one["Detail"]) for one in shown["Users"]] == [("mount", PATH)]

    done = ctl("--quiet", "disconnect", NQN, code=6)
    assert done.err.startswith(f"nvmeofctl: InUse: {NQN} is in use")
    assert f"nvmeofctl status {NQN}" in done.err

    assert ctl.json("unstage", PATH) == {"Disconnected": True}
    assert ctl.json("status") == ctl.json("list") == ctl.json("jobs") == []
    assert ctl.guest.call(facts.controllers) == []


def test_refusals(ctl: Ctl) -> None:
    dead = ctl("stage", NQN, UUID, "tcp://127.0.0.4:4420", "/srv/dead", code=8)
    assert "ConnectFailed" in dead.err
    home = ctl("unstage", "/dev", code=2)
    assert "nvmeofctl unstage --help" in home.err
    run = ctl("unstage", "/run", code=7)
    assert "findmnt /run" in run.err
    assert ctl("stage", NQN, UUID, *BOTH, "/srv/one", "--min-paths=3", code=2).err.startswith("nvmeofctl: Invalid")
    assert "nothing is staged" in ctl("show", "/srv/one", code=5).err


def test_not_for_everybody(ctl: Ctl) -> None:
    done = ctl.guest.run(["setpriv", "--reuid=65534", "--clear-groups", "nvmeofctl", "list"], check=False)
    assert done.rc == 4
    assert "sudo" in done.err


def test_completion_in_bash(ctl: Ctl) -> None:
    ctl.stage("--format=if-empty")
    assert ctl.completed("nvmeofctl", "unst", line="nvmeofctl unst") == ["unstage"]
    assert ctl.completed("nvmeofctl", "unstage", "/s", line="nvmeofctl unstage /s") == ["/srv/it\\'s\\ vol1"]
    # The colon is where bash cuts: only what follows is offered.
    words = ("nvmeofctl", "status", "nqn.2026-11.org.example", ":", "c")
    assert ctl.completed(*words, line="nvmeofctl status nqn.2026-11.org.example:c") == ["ctl"]
    assert ctl.completed("nvmeofctl", "status", "", line="nvmeofctl status ")[0] == NQN
    ctl("unstage", PATH)


def test_the_daemon_does_not_run(ctl: Ctl) -> None:
    """Who looks is told so; who works has it started."""
    ctl.guest.call(service.systemctl, "stop")
    for words in (("list",), ("status",), ("show",)):
        done = ctl(*words, code=3)
        assert "nvmeofd is not running" in done.err
        assert "systemctl start nvmeofd" in done.err
    assert ctl.completed("nvmeofctl", "unstage", "", line="nvmeofctl unstage ") == [""]
    assert ctl.guest.call(service.show, "ActiveState") == "inactive"
    ctl.guest.run(["systemctl", "mask", "--runtime", "nvmeofd.service"])
    done = ctl("disconnect", NQN, code=3)
    assert "nvmeofd cannot be started" in done.err
    assert "systemctl status nvmeofd" in done.err
    ctl.guest.run(["systemctl", "unmask", "--runtime", "nvmeofd.service"])
    assert ctl("disconnect", NQN).out == f"{NQN} was not connected\n"
    ctl.guest.call(bus.wait_owner, True)
    assert ctl.guest.call(service.show, "ActiveState") == "active"
