"""What is asked for in vain: the error says why, and everything is as it was.

That nothing stays connected, mounted or recorded is looked at after every test.
"""

from __future__ import annotations

from typing import Any

import pytest

from .daemon import BOTH, ONE, Daemon, refused
from .guest import content, facts, initiator, target, users
from .harness import Guest

NQN = "nqn.2024-01.org.example:refusals"
CLOSED = "nqn.2024-01.org.example:closed"
LOCKED = "nqn.2024-01.org.example:locked"
GUESTS_HOST = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000003"
EXT4, XFS, BLANK, BROKEN = 1, 2, 3, 4
DEAD = ("tcp://127.0.0.4:4420", "tcp://127.0.0.3:4499")
MIB = 1 << 20
GARBAGE = "5a" * 512


def backing(nsid: int) -> str:
    return str(target.backing_file(NQN, nsid))


@pytest.fixture(scope="module")
def daemon(guest: Guest) -> Daemon:
    guest.call(target.add_subsystem, NQN, namespaces=BROKEN, ports=[1, 2])
    for nsid, fstype in ((EXT4, "ext4"), (XFS, "xfs"), (BROKEN, "ext4")):
        guest.call(users.make_filesystem, backing(nsid), fstype)
    guest.run(["debugfs", "-w", "-R", "clri <2>", backing(BROKEN)])
    guest.run(["tune2fs", "-E", "force_fsck", backing(BROKEN)])
    guest.call(target.add_subsystem, CLOSED, ports=[3], hosts=[GUESTS_HOST])
    guest.snapshot("refusals")
    return Daemon(guest)


class TestConnecting:
    def test_one_dead_address(self, daemon: Daemon) -> None:
        """Fine, unless more live paths are wanted."""
        addresses = (*ONE, DEAD[0])
        with refused("ConnectFailed", "127.0.0.4", "refused"):
            daemon.stage(NQN, EXT4, "/srv/half", addresses, min_paths=2)
        assert daemon.guest.call(facts.controllers) == []
        daemon.stage(NQN, EXT4, "/srv/half", addresses)
        assert [entry[2] for entry in daemon.subsystem(NQN)["Controllers"]] == list(ONE)
        assert daemon.volume("/srv/half")["State"] == "degraded"
        assert daemon.unstage("/srv/half") is True

    def test_all_dead(self, daemon: Daemon) -> None:
        with refused("ConnectFailed", *(address.removeprefix("tcp://") for address in DEAD)):
            daemon.stage(NQN, EXT4, "/srv/dead", DEAD)

    def test_no_route(self, daemon: Daemon) -> None:
        daemon.guest.run(["ip", "route", "add", "unreachable", "192.0.2.1"])
        with refused("ConnectFailed", "192.0.2.1", "no route"):
            daemon.stage(NQN, EXT4, "/srv/unreachable", ("tcp://192.0.2.1",))
        daemon.guest.run(["ip", "route", "delete", "unreachable", "192.0.2.1"])

    def test_name_that_does_not_resolve(self, daemon: Daemon) -> None:
        with refused("ConnectFailed", "nowhere.invalid"):
            daemon.stage(NQN, EXT4, "/srv/nowhere", ("tcp://nowhere.invalid",))

    def test_wrong_nqn(self, daemon: Daemon) -> None:
        with refused("ConnectFailed", "127.0.0.1", "127.0.0.2", "no such subsystem"):
            daemon.stage(f"{NQN}-wrong", EXT4, "/srv/wrong")

    def test_host_not_allowed(self, daemon: Daemon) -> None:
        address = ("tcp://127.0.0.3",)
        with refused("ConnectFailed", "127.0.0.3", "does not allow this host"):
            daemon.stage(CLOSED, "nsid.1", "/srv/closed", address, type="block")
        identity = {"host_nqn": GUESTS_HOST, "host_id": "00000000-0000-4000-8000-000000000003"}
        daemon.stage(CLOSED, "nsid.1", "/srv/closed", address, type="block", **identity)
        with refused("ConnectFailed", "127.0.0.3"):
            daemon.stage(CLOSED, "nsid.1", "/srv/other", address, type="block")
        assert daemon.unstage("/srv/closed") is True

    def test_secret_is_needed(self, daemon: Daemon) -> None:
        """Of the same target and host only the secret is new."""
        guest, address = daemon.guest, ("tcp://127.0.0.4",)
        host = guest.call(initiator.host_nqn)
        guest.call(target.add_subsystem, LOCKED, ports=[4], hosts=[host])
        daemon.stage(LOCKED, "nsid.1", "/srv/locked", address, type="block")
        assert daemon.unstage("/srv/locked") is True
        guest.call(target.require_secret, host)
        with refused("AuthenticationFailed", "127.0.0.4", "DH-HMAC-CHAP"):
            daemon.stage(LOCKED, "nsid.1", "/srv/locked", address, type="block")
        with refused("ConnectFailed", "DH-HMAC-CHAP", DEAD[1].removeprefix("tcp://")):
            daemon.stage(LOCKED, "nsid.1", "/srv/locked", (*address, DEAD[1]), type="block")
        assert guest.call(facts.settled) == {}
        assert guest.run(["test", "-e", "/srv/locked"], check=False).rc == 1
        guest.call(target.remove_subsystem, LOCKED)
        guest.call(target.forget_host, host)

    def test_wrong_namespace(self, daemon: Daemon) -> None:
        with refused("NamespaceNotFound", "nsid.77", f"uuid.{target.namespace_uuid(NQN, EXT4)}"):
            daemon.stage(NQN, "nsid.77", "/srv/wrong", timeout=8)
        assert daemon.guest.call(facts.controllers) == []

    def test_wrong_namespace_beside_a_volume(self, daemon: Daemon) -> None:
        """Only what the failed call did is undone."""
        daemon.stage(NQN, EXT4, "/srv/right", ONE)
        before = daemon.guest.call(facts.controllers)
        with refused("NamespaceNotFound"):
            daemon.stage(NQN, target.namespace_uuid("unknown", 1), "/srv/wrong", timeout=8)
        assert daemon.guest.call(facts.controllers)[: len(before)] == before
        assert daemon.volume("/srv/right")["State"] == "staged"
        assert daemon.unstage("/srv/right") is True


class TestContent:
    def test_blank_and_not_to_be_formatted(self, daemon: Daemon) -> None:
        with refused("NoFilesystem"):
            daemon.stage(NQN, BLANK, "/srv/blank", ONE)
        with refused("NoFilesystem"):
            daemon.stage(NQN, BLANK, "/srv/blank", ONE, format="if-empty", read_only=True)

    @pytest.mark.parametrize("what", ["partitions", "luks", "swap", "start", "end"])
    def test_not_blank_is_not_formatted(self, daemon: Daemon, what: str) -> None:
        guest, path = daemon.guest, backing(BLANK)
        match what:
            case "partitions":
                guest.call(content.partition_table, path)
            case "luks":
                guest.call(content.luks_header, path)
            case "swap":
                guest.run(["mkswap", path])
            case "start":
                guest.call(content.write_at, path, MIB - 512, GARBAGE)
            case "end":
                guest.call(content.write_at, path, -512, GARBAGE)
        before = guest.call(content.fingerprint, path)
        with refused("NotBlank"):
            daemon.stage(NQN, BLANK, "/srv/used", ONE, format="if-empty")
        with refused("NotBlank"):
            daemon.stage(NQN, BLANK, "/srv/used", ONE, format="if-empty", fstype="xfs", mkfs_options=["-K"])
        assert guest.call(content.fingerprint, path) == before
        guest.call(content.wipe, path)

    def test_device_that_cannot_be_read_is_not_formatted(self, daemon: Daemon) -> None:
        guest, nsid = daemon.guest, 9
        device = guest.call(target.add_device, "frail")
        guest.call(target.add_namespace, NQN, nsid, device=device)
        guest.call(target.fail_device, "frail")
        with refused("NotBlank"):
            daemon.stage(NQN, nsid, "/srv/frail", ONE, format="if-empty")
        guest.call(target.remove_namespace, NQN, nsid)
        guest.call(target.remove_device, "frail")

    def test_wrong_filesystem(self, daemon: Daemon) -> None:
        guest = daemon.guest
        before = guest.call(content.fingerprint, backing(XFS))
        with refused("WrongFilesystem", "xfs", "ext4"):
            daemon.stage(NQN, XFS, "/srv/wrong", ONE, fstype="ext4")
        with refused("WrongFilesystem", "xfs", "ext4"):
            daemon.stage(NQN, XFS, "/srv/wrong", ONE, fstype="ext4", format="if-empty")
        assert guest.call(content.fingerprint, backing(XFS)) == before

    def test_damaged_filesystem(self, daemon: Daemon) -> None:
        with refused("CheckFailed", "e2fsck"):
            daemon.stage(NQN, BROKEN, "/srv/broken", ONE)
        with refused("MountFailed"):
            daemon.stage(NQN, BROKEN, "/srv/broken", ONE, fsck=False)

    def test_mkfs_that_fails(self, daemon: Daemon) -> None:
        with refused("FormatFailed", "mkfs.ext4"):
            daemon.stage(NQN, BLANK, "/srv/format", ONE, format="if-empty", mkfs_options=["-b", "77"])
        with refused("NoFilesystem"):
            daemon.stage(NQN, BLANK, "/srv/format", ONE)

    def test_mount_that_fails(self, daemon: Daemon) -> None:
        with refused("MountFailed", "mount"):
            daemon.stage(NQN, EXT4, "/srv/mount", ONE, mount_options=["no-such-option"])


class TestArguments:
    @pytest.mark.parametrize(
        "option",
        [
            {"dhchap-secret": "DHHC-1:00:secret:"},
            {"dhchap-ctrl-secret": "DHHC-1:00:secret:"},
            {"dhchap-secret-file": "/etc/secret"},
            {"dhchap-ctrl-secret-file": "/etc/secret"},
            {"no-such-option": True},
            {"fstype": 4},
            {"read-only": "yes"},
            {"min-paths": {"type": "i", "value": 1}},
            {"min-paths": 3},
            {"timeout": 0},
            {"type": "tape"},
            {"format": "always"},
            {"fstype": "../ext4"},
            {"mount-options": ["ro"]},
            {"mount-options": ["nodev,remount"]},
            {"mkfs-options": ["/dev/vda"]},
            {"host-nqn": "nobody"},
            {"host-id": "7"},
            {"ctrl-loss-tmo": -2},
            {"mkfs-options": ["-F"]},
        ],
        ids=lambda option: "-".join(map(str, option)),
    )
    def test_option(self, daemon: Daemon, option: dict[str, Any]) -> None:
        (name,) = option
        with refused("InvalidArgument", name):
            daemon.stage(NQN, EXT4, "/srv/option", BOTH, **option)

    def test_secret_is_not_repeated(self, daemon: Daemon) -> None:
        call = ["busctl", "call", "org.nvmeofd1", "/org/nvmeofd1", "org.nvmeofd1.Manager", "Stage", "ssassa{sv}"]
        arguments = [NQN, "nsid.1", "1", ONE[0], "/srv/secret", "1", "dhchap-secret", "s", "DHHC-1:00:confidential:"]
        done = daemon.guest.run([*call, *arguments], check=False)
        assert done.rc == 1
        assert "dhchap-secret" in done.err
        assert "confidential" not in done.out + done.err

    @pytest.mark.parametrize(
        ("nqn", "namespace", "address", "named"),
        [
            ("nobody", "nsid.1", ONE[0], "nqn"),
            (f"{NQN},traddr=1", "nsid.1", ONE[0], "nqn"),
            ("nqn.2014-08.org.nvmexpress.discovery", "nsid.1", ONE[0], "discovery"),
            (NQN, "nsid.0", ONE[0], "namespace"),
            (NQN, "nvme0n1", ONE[0], "namespace"),
            (NQN, "nsid.1", "127.0.0.1", "127.0.0.1"),
            (NQN, "nsid.1", "tcp://127.0.0.1:x", "127.0.0.1:x"),
            (NQN, "nsid.1", "tcp://::1", "::1"),
            (NQN, "nsid.1", "tcp://127.0.0.1?speed=9", "speed"),
            (NQN, "nsid.1", "http://127.0.0.1", "http://127.0.0.1"),
        ],
    )
    def test_argument(self, daemon: Daemon, nqn: str, namespace: str, address: str, named: str) -> None:
        with refused("InvalidArgument", named):
            daemon.stage(nqn, namespace, "/srv/argument", (address,))

    def test_no_address(self, daemon: Daemon) -> None:
        with refused("InvalidArgument", "address"):
            daemon.stage(NQN, EXT4, "/srv/none", ())

    def test_unstage_and_disconnect(self, daemon: Daemon) -> None:
        with refused("InvalidArgument", "relative"):
            daemon.unstage("relative")
        with refused("InvalidArgument", "lazy"):
            daemon.unstage("/srv/v", lazy=True)
        with refused("InvalidArgument", "force", "keep-connected"):
            daemon.unstage("/srv/v", force=True, keep_connected=True)
        with refused("InvalidArgument", "nqn"):
            daemon.disconnect("nobody")
        assert daemon.disconnect(f"{NQN}-unknown") == []
