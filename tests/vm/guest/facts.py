"""What is the case in the guest right now: read from the kernel and from the daemon's files, never from the daemon."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TypedDict

from .waiting import wait_until

SUBSYSTEMS = Path("/sys/class/nvme-subsystem")
DAEMON_RUN = Path("/run/nvmeofd")
REGISTRY = Path("/run/nvme/registry")
CGROUP = Path("/sys/fs/cgroup/system.slice/nvmeofd.service")


class Controller(TypedDict):
    name: str
    transport: str
    address: str
    state: str


class Namespace(TypedDict):
    device: str
    nsid: int
    wwid: str
    uuid: str
    size: int
    dev: str
    diskseq: str


class Subsystem(TypedDict):
    nqn: str
    name: str
    controllers: list[Controller]
    namespaces: list[Namespace]


class Mount(TypedDict):
    path: str
    source: str
    fstype: str
    root: str
    dev: str
    options: str


class Daemon(TypedDict):
    """`pid` 0: not running."""

    pid: int
    threads: list[str]
    fds: list[str]
    children: list[int]


def _text(path: Path) -> str:
    """An attribute, or "" when its object has gone meanwhile (also ENODEV, EINVAL of a dying one)."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return ""


def _address(controller: Path) -> str:
    """As in the attribute "address", which is not read: that can crash the kernel while a path is torn down."""
    lines = _text(controller / "uevent").splitlines()
    pairs = [line.removeprefix("NVME_").partition("=") for line in lines if line.startswith("NVME_")]
    return ",".join(f"{key.lower()}={value}" for key, _, value in pairs if key != "TRTYPE" and value != "none")


def subsystems() -> list[Subsystem]:
    """Every NVMe-oF subsystem that the host is connected to."""
    if not SUBSYSTEMS.exists():
        return []
    return [_subsystem(path) for path in sorted(SUBSYSTEMS.iterdir()) if _text(path / "subsysnqn")]


def subsystem(nqn: str) -> Subsystem | None:
    return next((found for found in subsystems() if found["nqn"] == nqn), None)


def _subsystem(path: Path) -> Subsystem:
    result: Subsystem = {"nqn": _text(path / "subsysnqn"), "name": path.name, "controllers": [], "namespaces": []}
    with contextlib.suppress(FileNotFoundError):
        for entry in sorted(path.iterdir()):
            if entry.is_symlink() and (entry / "transport").exists():
                result["controllers"].append(
                    {
                        "name": entry.name,
                        "transport": _text(entry / "transport"),
                        "address": _address(entry),
                        "state": _text(entry / "state"),
                    }
                )
            elif (entry / "nsid").exists() and _text(entry / "hidden") != "1":
                result["namespaces"].append(
                    {
                        "device": f"/dev/{entry.name}",
                        "nsid": int(_text(entry / "nsid") or 0),
                        "wwid": _text(entry / "wwid"),
                        "uuid": _text(entry / "uuid"),
                        "size": int(_text(entry / "size") or 0) * 512,
                        "dev": _text(entry / "dev"),
                        "diskseq": _text(entry / "diskseq"),
                    }
                )
    return result


def controllers() -> list[str]:
    path = Path("/sys/class/nvme")
    return sorted(entry.name for entry in path.iterdir()) if path.exists() else []


def mounts(pid: str = "self") -> list[Mount]:
    """The mount table of a process, in order; octal escapes are undone."""
    result: list[Mount] = []
    for line in Path(f"/proc/{pid}/mountinfo").read_bytes().splitlines():
        left, _, right = line.partition(b" - ")
        fields, tail = left.split(b" "), right.split(b" ")
        result.append(
            {
                "path": _unescape(fields[4]),
                "source": _unescape(tail[1]),
                "fstype": tail[0].decode(),
                "root": _unescape(fields[3]),
                "dev": fields[2].decode(),
                "options": f"{fields[5].decode()},{tail[2].decode()}",
            }
        )
    return result


def _unescape(field: bytes) -> str:
    parts = field.split(b"\\")
    raw = parts[0] + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in parts[1:])
    return raw.decode(errors="surrogateescape")


def nvme_mounts() -> list[Mount]:
    """Mounts of NVMe namespaces: file systems on them, and device nodes bound onto files."""
    return [
        mount
        for mount in mounts()
        if mount["source"].startswith("/dev/nvme")
        or (mount["fstype"] == "devtmpfs" and mount["root"].startswith("/nvme"))
    ]


def files(folder: str) -> dict[str, str]:
    """Every file below a folder with its content."""
    return {
        os.path.join(top, name): _text(Path(top, name)) for top, _, names in os.walk(folder) for name in sorted(names)
    }


def registry() -> dict[str, str]:
    return files(str(REGISTRY))


def daemon() -> Daemon:
    """The daemon's process by its cgroup: asking systemctl would cost a hundred times as much."""
    pids = [int(pid) for pid in _text(CGROUP / "cgroup.procs").split()]
    main = next((pid for pid in pids if _parent(pid) not in pids), 0)
    result: Daemon = {"pid": main, "threads": [], "fds": [], "children": [pid for pid in pids if pid != main]}
    if main:
        result["threads"] = sorted(_text(path / "comm") for path in Path(f"/proc/{main}/task").iterdir())
        for entry in Path(f"/proc/{main}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                result["fds"].append(os.readlink(entry))
        result["fds"].sort()
    return result


def _parent(pid: int) -> int:
    stat = _text(Path(f"/proc/{pid}/stat"))
    return int(stat.rpartition(")")[2].split()[1]) if stat else 0


def swaps() -> list[str]:
    return [line.split()[0] for line in _text(Path("/proc/swaps")).splitlines()[1:]]


def holders() -> dict[str, list[str]]:
    """Device-mapper, md and the like on top of NVMe namespaces."""
    return {
        path.name: held
        for path in sorted(Path("/sys/block").glob("nvme*"))
        if (path / "holders").is_dir() and (held := sorted(entry.name for entry in (path / "holders").iterdir()))
    }


def excess(threads: int, fds: int) -> list[str]:
    """What a running daemon has beyond this many threads and file descriptors."""
    now = daemon()
    if not now["pid"]:
        return []
    found = []
    if len(now["threads"]) > threads:
        found.append(f"{len(now['threads'])} threads instead of {threads}: {now['threads']}")
    if len(now["fds"]) > fds:
        found.append(f"{len(now['fds'])} file descriptors instead of {fds}: {now['fds']}")
    return found


def settled(threads: int = 0, fds: int = 0, timeout: float = 10.0) -> dict[str, list[str]]:
    """`leftovers`, once they are none or the deadline is over; with a daemon's baseline, also what it has beyond."""

    def look() -> dict[str, list[str]]:
        found = leftovers()
        if threads and (more := excess(threads, fds)):
            found["daemon"] = more
        return found

    try:
        wait_until(lambda: not look(), timeout, "a clean guest")
    except TimeoutError:
        return look()
    return {}


def leftovers() -> dict[str, list[str]]:
    """What a test left behind; an empty answer is a clean guest. Target subsystems are the module's business."""
    found: dict[str, list[str]] = {
        "subsystems": [entry["nqn"] for entry in subsystems()],
        "controllers": controllers(),
        "mounts": [f"{mount['source']} on {mount['path']}" for mount in nvme_mounts()],
        "holders": [f"{device}: {', '.join(held)}" for device, held in holders().items()],
        "swap": [path for path in swaps() if path.startswith("/dev/nvme")],
        "journal": [f"{path}: {text}" for path, text in files(str(DAEMON_RUN)).items()],
        "registry": [f"{path}: {text}" for path, text in registry().items()],
        "children of the daemon": [str(pid) for pid in daemon()["children"]],
    }
    return {kind: entries for kind, entries in found.items() if entries}
