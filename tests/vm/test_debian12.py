"""The main job on Debian 12: Linux 6.1, Python 3.11, systemd 252."""

from __future__ import annotations

import pytest

from .daemon import Daemon, refused
from .guest import facts, initiator, service, target, users
from .harness import Guest

NQN = "nqn.2024-01.org.example:bookworm"
pytestmark = pytest.mark.parametrize("guest", ["debian12"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def daemon(guest: Guest) -> Daemon:
    guest.call(target.add_subsystem, NQN, namespaces=2, ports=[1, 2])
    guest.snapshot("bookworm")
    return Daemon(guest)


def test_the_main_job(daemon: Daemon) -> None:
    guest = daemon.guest
    for nsid, fstype in ((1, "ext4"), (2, "xfs")):
        daemon.stage(NQN, nsid, f"/srv/{fstype}", fstype=fstype, format="if-empty", min_paths=2)
        assert guest.run(["findmnt", "-no", "FSTYPE", f"/srv/{fstype}"]).out.strip() == fstype
        after = guest.run(["systemctl", "show", "--property", "After", f"srv-{fstype}.mount"]).out
        assert "remote-fs-pre.target" in after, "what _netdev is for"
        guest.write(f"/srv/{fstype}/file", b"kept")
    with refused("InUse", "/srv/ext4", "/srv/xfs"):
        daemon.disconnect(NQN)
    assert daemon.unstage("/srv/ext4") is False
    assert daemon.unstage("/srv/xfs") is True
    daemon.stage(NQN, 1, "/srv/ext4", format="if-empty")
    assert guest.read("/srv/ext4/file") == b"kept"
    assert daemon.unstage("/srv/ext4") is True


def test_block_volume_and_restart(daemon: Daemon) -> None:
    guest = daemon.guest
    daemon.stage(NQN, 1, "/srv/block", type="block")
    before = daemon.volume("/srv/block")
    guest.call(service.systemctl, "restart")
    guest.call(service.kill)
    assert daemon.volume("/srv/block") == before
    assert daemon.unstage("/srv/block") is True


def test_users_that_only_the_kernel_knows_of(daemon: Daemon) -> None:
    guest = daemon.guest
    daemon.stage(NQN, 1, "/srv/block", type="block")
    device = guest.call(initiator.device, NQN, 2)
    guest.call(users.make_filesystem, device, "xfs")
    for begin, kind in ((users.private_mount, "claim"), (users.private_bind, "block-mount")):
        guest.call(begin, "user", device, f"/mnt/{kind}")
        assert (kind, device) in {user[:2] for user in daemon.users(NQN)}
        guest.call(users.end, "user")
    guest.call(users.opener, "user", device)
    assert daemon.unstage("/srv/block") is False
    with refused("InUse", "open", device, "sleep"):
        daemon.disconnect(NQN)
    guest.call(users.end, "user")
    # Now, unless the daemon did it by itself already.
    assert len(daemon.disconnect(NQN)) in (0, 2)
    assert guest.call(facts.controllers) == []


def test_host_id_in_use_with_another_host_nqn(daemon: Daemon) -> None:
    """This kernel does not refuse it. The path then belongs to another host, and is none of the volume's."""
    guest = daemon.guest
    other = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000005"
    guest.call(initiator.connect, NQN, host=other)
    daemon.stage(NQN, 1, "/srv/block", ("tcp://127.0.0.2:4420",), type="block")
    assert daemon.unstage("/srv/block") is False
    assert len(guest.call(facts.controllers)) == 1
    guest.call(initiator.disconnect, NQN)
