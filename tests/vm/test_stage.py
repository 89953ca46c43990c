"""Stage and Unstage where all goes well: filesystems, block volumes, identities, paths, options of the connection."""

from __future__ import annotations

import pytest

from .daemon import BOTH, ONE, Daemon, volume_path
from .guest import content, facts, initiator, target, users
from .harness import Guest

NQN = "nqn.2024-01.org.example:stage"
EXT4, OTHER_EXT4, XFS, XFS_CLONE, BLANK = 1, 2, 3, 4, 5
MANAGER = ("org.nvmeofd1", "/org/nvmeofd1", "org.nvmeofd1.Manager")


def backing(nsid: int) -> str:
    return str(target.backing_file(NQN, nsid))


def exists(guest: Guest, path: str) -> bool:
    return guest.run(["test", "-e", path], check=False).rc == 0


@pytest.fixture(scope="module")
def daemon(guest: Guest) -> Daemon:
    """Five namespaces over two addresses: some with a file system, one blank."""
    guest.call(target.add_subsystem, NQN, namespaces=BLANK, ports=[1, 2])
    for nsid, fstype in ((EXT4, "ext4"), (OTHER_EXT4, "ext4"), (XFS, "xfs")):
        guest.call(users.make_filesystem, backing(nsid), fstype)
    guest.call(content.copy, backing(XFS), backing(XFS_CLONE))
    guest.snapshot("stage")
    return Daemon(guest)


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_blank_device_becomes_a_filesystem_that_lasts(daemon: Daemon, fstype: str) -> None:
    guest, path = daemon.guest, f"/srv/{fstype}"
    guest.call(content.wipe, backing(BLANK))
    device = daemon.stage(NQN, BLANK, path, fstype=fstype, format="if-empty", mount_options=["noatime"])
    found = guest.call(facts.subsystem, NQN)
    assert found is not None
    assert [(entry["state"], entry["address"][:16]) for entry in found["controllers"]] == [
        ("live", "traddr=127.0.0.1"),
        ("live", "traddr=127.0.0.2"),
    ]
    (mount,) = guest.call(facts.nvme_mounts)
    assert (mount["path"], mount["source"], mount["fstype"]) == (path, device, fstype)
    shown = guest.run(["findmnt", "--noheadings", "--raw", "--output", "OPTIONS", path]).out.strip().split(",")
    assert {"noatime", "rw"} <= set(shown)
    assert ("nouuid" in shown) == (fstype == "xfs")
    assert "_netdev" in guest.run(["grep", "-F", path, "/run/mount/utab"]).out, "systemd looks there"
    guest.write(f"{path}/file", b"kept")
    assert daemon.unstage(path) is True
    assert not exists(guest, path)
    daemon.stage(NQN, BLANK, path, format="if-empty")
    assert daemon.volume(path)["Filesystem"] == fstype
    assert guest.read(f"{path}/file") == b"kept"
    assert daemon.unstage(path) is True


def test_volume_tells_what_is_staged(daemon: Daemon) -> None:
    device = daemon.stage(NQN, EXT4, "/srv/told", mount_options=["nodev", "commit=7"])
    told = daemon.volume("/srv/told")
    staged_at = told.pop("StagedAt")
    now = float(daemon.guest.run(["date", "+%s"]).out)
    assert now - 60 < staged_at / 1e6 <= now + 1
    assert set(told.pop("MountOptions")) == {"nodev", "commit=7", "_netdev"}
    assert told == {
        "NQN": NQN,
        "Namespace": f"uuid.{target.namespace_uuid(NQN, EXT4)}",
        "Device": device,
        "StagingPath": "/srv/told",
        "Type": "filesystem",
        "Filesystem": "ext4",
        "ReadOnly": False,
        "Size": target.SIZE,
        "State": "staged",
    }
    assert daemon.objects("volume") == [volume_path("/srv/told")]
    assert daemon.unstage("/srv/told")
    assert daemon.objects("volume") == []


def test_by_hand_with_busctl(daemon: Daemon) -> None:
    """As an administrator types it; two volumes, the last one takes the connection with it."""
    guest, typed = daemon.guest, ["busctl", "call", *MANAGER]
    for nsid, path in ((EXT4, "/srv/one"), (OTHER_EXT4, "/srv/two")):
        identity = f"uuid.{target.namespace_uuid(NQN, nsid)}"
        answer = guest.run([*typed, "Stage", "ssassa{sv}", NQN, identity, "2", *BOTH, path, "1", "fstype", "s", "ext4"])
        assert answer.out.startswith(f'os "{volume_path(path)}" "/dev/nvme')
    assert guest.run([*typed, "Unstage", "sa{sv}", "/srv/one", "0"]).out == "b false\n"
    assert guest.run([*typed, "Unstage", "sa{sv}", "/srv/two", "0"]).out == "b true\n"
    assert guest.run([*typed, "Disconnect", "sa{sv}", NQN, "0"]).out == "as 0\n"


def test_block_volume(daemon: Daemon) -> None:
    guest, path = daemon.guest, "/srv/raw"
    guest.call(content.wipe, backing(BLANK))
    device = daemon.stage(NQN, BLANK, path, type="block")
    (mount,) = guest.call(facts.nvme_mounts)
    assert (mount["path"], mount["fstype"], mount["root"]) == (path, "devtmpfs", device.removeprefix("/dev"))
    assert guest.run(["blockdev", "--getsize64", path]).out == f"{target.SIZE}\n"
    guest.run(["dd", f"of={path}", "bs=4096", "oflag=direct"], stdin=b"block".ljust(4096, b"\0"))
    told = daemon.volume(path)
    assert (told["Type"], told["Filesystem"], told["MountOptions"]) == ("block", "", [])
    assert daemon.unstage(path) is True
    assert not exists(guest, path)
    guest.run(["touch", path])
    daemon.stage(NQN, BLANK, path, type="block", read_only=True)
    assert guest.run(["head", "-c", "5", path]).out == "block"
    assert guest.run(["blockdev", "--getro", path]).out == "1\n"
    assert daemon.unstage(path) is True
    assert exists(guest, path), "it was there before"
    guest.run(["rm", path])


def test_read_only(daemon: Daemon) -> None:
    guest, path = daemon.guest, "/srv/ro"
    device = daemon.stage(NQN, EXT4, path, read_only=True)
    before = guest.call(content.fingerprint, backing(EXT4))
    assert guest.run(["blockdev", "--getro", device]).out == "1\n"
    assert "ro" in guest.call(facts.nvme_mounts)[0]["options"].split(",")
    assert "Read-only" in guest.run(["touch", f"{path}/no"], check=False).err
    assert daemon.volume(path)["ReadOnly"] is True
    assert daemon.unstage(path, keep_connected=True) is False
    assert guest.call(content.fingerprint, backing(EXT4)) == before
    daemon.stage(NQN, EXT4, path)
    guest.run(["touch", f"{path}/yes"])
    assert daemon.unstage(path) is True


def test_every_way_to_name_a_namespace(daemon: Daemon) -> None:
    uuid = target.namespace_uuid(NQN, OTHER_EXT4)
    names = [f"uuid.{uuid}", uuid, uuid.replace("-", ""), uuid.upper(), f"nsid.{OTHER_EXT4}"]
    names.append(f"eui.{target.namespace_nguid(NQN, OTHER_EXT4)}")
    for name in names:
        daemon.stage(NQN, name, "/srv/named", ONE, type="block")
        assert daemon.volume("/srv/named")["Namespace"] == f"uuid.{uuid}", name
        assert daemon.unstage("/srv/named", keep_connected=True) is False
    assert daemon.disconnect(NQN) != []


def test_namespace_without_uuid(daemon: Daemon) -> None:
    guest, nsid = daemon.guest, 9
    guest.call(target.add_namespace, NQN, nsid, wwid="00000000-0000-0000-0000-000000000000")
    wwid = f"eui.{target.namespace_nguid(NQN, nsid)}"
    daemon.stage(NQN, wwid, "/srv/eui", ONE, type="block")
    assert daemon.volume("/srv/eui")["Namespace"] == wwid
    assert daemon.unstage("/srv/eui") is True
    guest.call(target.remove_namespace, NQN, nsid)


def test_repeated_calls_change_nothing(daemon: Daemon) -> None:
    guest, table = daemon.guest, ["grep", "-F", "/srv/again", "/proc/self/mountinfo"]
    device = daemon.stage(NQN, EXT4, "/srv/again")
    mounted, controllers = guest.run(table).out, guest.call(facts.controllers)
    assert daemon.stage(NQN, EXT4, "/srv/again") == device
    assert daemon.stage(NQN, f"nsid.{EXT4}", "/srv/again", fstype="ext4", format="if-empty") == device
    assert guest.run(table).out == mounted
    assert guest.call(facts.controllers) == controllers
    assert daemon.unstage("/srv/again") is True
    daemon.unstage("/srv/again")
    daemon.unstage("/srv/never-staged")


def test_another_call_may_add_a_path(daemon: Daemon) -> None:
    daemon.stage(NQN, EXT4, "/srv/one", ONE)
    daemon.stage(NQN, OTHER_EXT4, "/srv/two", BOTH, min_paths=2)
    assert len(daemon.subsystem(NQN)["Controllers"]) == 2
    assert daemon.unstage("/srv/two") is False
    assert len(daemon.subsystem(NQN)["Controllers"]) == 2
    assert daemon.unstage("/srv/one") is True


def test_keep_connected(daemon: Daemon) -> None:
    guest = daemon.guest
    daemon.stage(NQN, EXT4, "/srv/kept")
    before = guest.call(facts.controllers)
    assert daemon.unstage("/srv/kept", keep_connected=True) is False
    # Something that makes the daemon look at the subsystem again.
    guest.call(users.mount, "visitor", guest.call(initiator.device, NQN, EXT4), "/mnt/visitor")
    guest.call(users.end, "visitor")
    daemon.stage(NQN, EXT4, "/srv/kept")
    assert guest.call(facts.controllers) == before
    assert daemon.unstage("/srv/kept", keep_connected=True) is False
    assert daemon.disconnect(NQN) == before


def test_clones_of_one_xfs_side_by_side(daemon: Daemon) -> None:
    daemon.stage(NQN, XFS, "/srv/original", ONE)
    daemon.stage(NQN, XFS_CLONE, "/srv/clone", ONE)
    assert daemon.unstage("/srv/original") is False
    assert daemon.unstage("/srv/clone") is True


class TestConnection:
    def attribute(self, guest: Guest, name: str) -> str:
        (controller,) = guest.call(facts.controllers)
        return guest.read(f"/sys/class/nvme/{controller}/{name}").decode().strip()

    def test_options_reach_the_kernel(self, daemon: Daemon) -> None:
        guest, host = daemon.guest, "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000002"
        numbers = {"ctrl_loss_tmo": 78, "fast_io_fail_tmo": 66, "reconnect_delay": 3}
        daemon.stage(
            NQN,
            EXT4,
            "/srv/options",
            ONE,
            host_nqn=host,
            host_id="00000000-0000-4000-8000-000000000002",
            keep_alive_tmo=8,
            nr_io_queues=1,
            queue_size=32,
            hdr_digest=True,
            data_digest=True,
            **numbers,
        )
        wanted = {name: str(number) for name, number in numbers.items()}
        wanted |= {"hostnqn": host, "kato": "8", "queue_count": "2", "sqsize": "31"}
        assert {name: self.attribute(guest, name) for name in wanted} == wanted
        assert daemon.unstage("/srv/options") is True

    def test_source_address(self, daemon: Daemon) -> None:
        daemon.stage(NQN, EXT4, "/srv/from", ("tcp://127.0.0.1:4420?host-traddr=127.0.0.9",))
        assert "NVME_HOST_TRADDR=127.0.0.9" in self.attribute(daemon.guest, "uevent")
        assert daemon.unstage("/srv/from") is True

    def test_host_names_are_resolved(self, daemon: Daemon) -> None:
        """And an address that is connected already is recognised behind its name."""
        daemon.stage(NQN, EXT4, "/srv/one", ("tcp://127.0.0.1",))
        daemon.stage(NQN, OTHER_EXT4, "/srv/two", ("tcp://guest:4420",))
        (controller,) = daemon.subsystem(NQN)["Controllers"]
        assert controller[1:] == ["tcp", "tcp://127.0.0.1:4420", "live"]
        assert daemon.unstage("/srv/one") is False
        assert daemon.unstage("/srv/two") is True

    def test_ipv6(self, daemon: Daemon) -> None:
        guest = daemon.guest
        guest.call(target.link, NQN, 5)
        daemon.stage(NQN, EXT4, "/srv/one", ("tcp://[::1]:4420",))
        daemon.stage(NQN, OTHER_EXT4, "/srv/two", ("tcp://[0:0::0001]",))
        (controller,) = daemon.subsystem(NQN)["Controllers"]
        assert controller[2] == "tcp://[::1]:4420"
        assert daemon.unstage("/srv/one") is False
        assert daemon.unstage("/srv/two") is True
        guest.call(target.unlink, NQN, 5)
