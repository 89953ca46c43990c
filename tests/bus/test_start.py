"""The whole daemon on a private bus and the kernel of this host: without a complete picture it does not serve.

It runs in a mount namespace of its own, where what it reads can be spoilt.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from nvmeofd.bus.messages import BUS_NAME
from nvmeofd.bus.paths import SERVICE_NAME
from tests.bus.harness import REPOSITORY, PrivateBus, client

NAMESPACE = ("unshare", "--mount", "--propagation", "private")
ODD = "/sys/class/nvme-subsystem/nvme-subsys0/subsysnqn"
# What spoils it, and what the error has to name.
OBSTACLES = {
    "journal is a file": ("touch /run/nvmeofd", "/run/nvmeofd"),
    "journal cannot be read": ("mkdir -p /run/nvmeofd/odd.json", "/run/nvmeofd/odd.json"),
    "subsystems cannot be read": (f"mount -n -t tmpfs class /sys/class && mkdir -p {ODD}", ODD),
}
START = (
    'mount -n -t tmpfs run /run && eval "$1" && exec "$2" -c "import nvmeofd.daemon as d; raise SystemExit(d.main())"'
)


def missing() -> str:
    """Why it cannot be run here, "" when it can."""
    if os.geteuid() != 0:
        return "needs root"
    if subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode != 0:
        return "needs CAP_SYS_ADMIN, for a mount namespace"
    return ""


WHY = missing()
pytestmark = pytest.mark.skipif(bool(WHY), reason=WHY)


async def start(bus: PrivateBus, obstacle: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(*NAMESPACE, "sh", "-c", START, "sh", obstacle, sys.executable),
        cwd=REPOSITORY,
        env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": bus.address},
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("name", OBSTACLES)
async def test_no_service_on_half_a_picture(name: str) -> None:
    """It ends with an error that says what is wrong, and never takes its name on the bus."""
    obstacle, named = OBSTACLES[name]
    with PrivateBus() as bus:
        async with client(bus) as watcher:
            await watcher.subscribe(
                f"type='signal',sender='{BUS_NAME}',member='NameOwnerChanged',arg0='{SERVICE_NAME}'"
            )
            daemon = await start(bus, obstacle)
            _, error = await daemon.communicate()
            assert daemon.returncode == 1
            assert named in error.decode()
            # whatever the bus had to say before is here with its answer
            assert await watcher.connection.call_bus("NameHasOwner", "s", SERVICE_NAME) == [False]
            assert watcher.signals == []


async def test_nothing_in_the_way() -> None:
    """The same without an obstacle: it serves until it is told to end."""
    with PrivateBus() as bus:
        async with client(bus) as watcher:
            await watcher.subscribe(
                f"type='signal',sender='{BUS_NAME}',member='NameOwnerChanged',arg0='{SERVICE_NAME}'"
            )
            daemon = await start(bus, "true")
            await watcher.signal("NameOwnerChanged")
            daemon.send_signal(signal.SIGTERM)
            await daemon.communicate()
            assert daemon.returncode == 0
