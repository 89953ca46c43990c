"""Where the kernel and the host keep what this package reads and writes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Roots:
    """Directories of the system, each without a slash at the end. Tests put trees of their own here."""

    sys: str = "/sys"
    proc: str = "/proc"
    dev: str = "/dev"
    etc_nvme: str = "/etc/nvme"
    machine_id: str = "/etc/machine-id"
    run_nvme: str = "/run/nvme"
    run_nvmeofd: str = "/run/nvmeofd"  # the daemon's own, closed to everybody else
