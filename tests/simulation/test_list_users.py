"""ListUsers sees the same users whatever the daemon itself is just at."""

from __future__ import annotations

from nvmeofd.model import UserKind
from tests.simulation.harness import Host
from tests.simulation.setting import ONE, PATHS, XFS, simulated


@simulated()
async def test_private_mount_while_the_daemon_tries_to_disconnect(host: Host) -> None:
    """Right after an Unstage the daemon makes up its mind on its own, and that is no reason to leave a claim out."""
    await host.stage(ONE, XFS, PATHS, "/srv/a")
    pid = host.world.unshare()
    host.world.mount(host.world.head(ONE, 1), "/mnt/x", space=pid)
    host.kernel.faults.delay("scan_processes", 5, skip=1)
    assert await host.unstage("/srv/a") is False
    users = await host.answer(host.submit(host.engine.list_users(ONE)))
    assert [user.kind for user in users if user.device == host.world.head(ONE, 1).path] == [UserKind.CLAIM]
    host.world.end_process(pid)
