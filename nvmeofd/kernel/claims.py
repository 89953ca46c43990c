"""The exclusive claim: while it is held, nobody else can mount, swap on or build upon the namespaces."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from nvmeofd.kernel.blockdev import close_all, open_exclusively, release, write_back
from nvmeofd.kernel.interface import Claim
from nvmeofd.kernel.threads import in_thread
from nvmeofd.model import Namespace


class _Claim:
    def __init__(self, fds: Sequence[int], namespaces: Sequence[Namespace], dev: str) -> None:
        self._fds = fds
        self._partitions = [(f"{dev}/{one.name}", one.number) for whole in namespaces for one in whole.partitions]

    async def write_back(self) -> None:
        await in_thread(lambda: write_back(self._fds, self._partitions), name="write back")


@asynccontextmanager
async def claim(namespaces: Sequence[Namespace], dev: str) -> AsyncIterator[Claim]:
    """Hold all namespaces open with O_EXCL.

    Entering raises ClaimBusy, DeviceChanged, OSError, and has then released what it had; so it has when it is
    cancelled, once the kernel has let go of the opening thread.
    """
    wanted = tuple(namespaces)
    # One thread for all: what comes after the first device that blocks is of no interest, and there are few.
    fds = await in_thread(lambda: open_exclusively(wanted, dev), name="claim", dispose=close_all)
    try:
        yield _Claim(fds, wanted, dev)
    finally:
        await release(fds, "unclaim")
