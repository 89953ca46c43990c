"""What the daemon knows of one staged volume."""

from __future__ import annotations

from dataclasses import dataclass

from nvmeofd.model import Address, DeviceNumber, Namespace, VolumeState, VolumeType


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """One staged volume. ``size`` is in bytes, ``staged_at`` in microseconds since the epoch."""

    nqn: str
    wwid: str
    nsid: int
    device: str  # /dev/nvme0n1, the name at the time of staging
    number: DeviceNumber
    diskseq: int
    staging_path: str
    type: VolumeType
    fstype: str  # "" for block volumes
    mount_options: tuple[str, ...]
    read_only: bool
    size: int
    staged_at: int
    addresses: tuple[Address, ...]  # resolved: the paths that were asked for
    created_path: bool  # the staging path did not exist before and goes away with the volume
    state: VolumeState = VolumeState.STAGED

    def is_on(self, namespace: Namespace) -> bool:
        """Whether the volume lives on this very incarnation of the namespace."""
        return (self.wwid, self.number, self.diskseq) == (namespace.wwid, namespace.number, namespace.diskseq)
