"""A sysfs with NVMe subsystems in a directory."""

from __future__ import annotations

import itertools
from pathlib import Path

NQN = "nqn.2024-01.org.example:one"
UUID = "5ea5cdd1-3d8c-4a5e-8a60-3f2d6c1f2a10"
_minors = itertools.count()


def write(path: Path, **attributes: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, value in attributes.items():
        (path / name).write_text(f"{value}\n")
    return path


def uevent(traddr: str = "127.0.0.1", host_iface: str = "none") -> str:
    """What the kernel tells of a controller, "none" for what that was not given."""
    return (
        "MAJOR=243\nMINOR=0\nDEVNAME=nvme0\nNVME_TRTYPE=tcp\n"
        f"NVME_TRADDR={traddr}\nNVME_TRSVCID=4420\nNVME_HOST_TRADDR=none\nNVME_HOST_IFACE={host_iface}"
    )


def link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def subsystem(sys: Path, name: str, nqn: str = NQN) -> Path:
    device = write(sys / "devices/virtual/nvme-subsystem" / name, subsysnqn=nqn)
    link(sys / "class/nvme-subsystem" / name, device)
    return device


def controller(sys: Path, subsystem: Path, name: str, **attributes: str) -> Path:
    given = {
        "subsysnqn": (subsystem / "subsysnqn").read_text().strip(),
        "transport": "tcp",
        "uevent": uevent(),
        "state": "live",
        "hostnqn": "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000001",
        "hostid": "00000000-0000-4000-8000-000000000001",
        "rescan_controller": "",
        "delete_controller": "",
    } | attributes
    device = write(sys / "devices/virtual/nvme-fabrics/ctl" / name, **given)
    link(sys / "class/nvme" / name, device)
    link(subsystem / name, device)
    return device


def disk(sys: Path, parent: Path, name: str, *, partitions: int = 0, **attributes: str) -> Path:
    given = {
        "dev": f"259:{next(_minors)}",
        "hidden": "0",
        "size": "2048",
        "diskseq": "17",
        "nsid": "1",
        "wwid": f"uuid.{UUID}",
        "uuid": UUID,
    } | attributes
    device = write(parent / name, **{key: value for key, value in given.items() if value})
    (device / "holders").mkdir()
    link(sys / "class/block" / name, device)
    for number in range(1, partitions + 1):
        part = write(device / f"{name}p{number}", dev=f"259:{next(_minors)}", partition=str(number))
        (part / "holders").mkdir()
        link(sys / "class/block" / part.name, part)
    return device
