"""The service as a process of its own, with a core that does at once what it is told: `python -m tests.bus.serve BUS`.

It says "ready" and serves until its input ends.
"""

from __future__ import annotations

import asyncio
import sys

from nvmeofd.bus.service import BusService
from tests.bus.fake import FakeCore, subsystem


async def main(address: str) -> None:
    core = FakeCore()
    core.connect(subsystem())
    service = await BusService.connect(address)
    core.observer = service
    service.export(core)
    await service.own_name()
    print("ready", flush=True)
    ended = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
    await asyncio.wait({ended, service.lost}, return_when=asyncio.FIRST_COMPLETED)
    if service.lost.done():
        sys.exit(f"lost: {service.lost.result()}")
    await service.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
