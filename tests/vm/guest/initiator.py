"""The host side of NVMe over Fabrics without the daemon: what a stranger on the host does, and raw kernel facts."""

from __future__ import annotations

import fcntl
import os
from errno import errorcode
from pathlib import Path

from .facts import Subsystem, subsystem, subsystems
from .waiting import command, wait_until


def setup() -> None:
    command(["modprobe", "nvme-tcp"])


def host_nqn() -> str:
    return Path("/etc/nvme/hostnqn").read_text(encoding="ascii").strip()


def host_id() -> str:
    return Path("/etc/nvme/hostid").read_text(encoding="ascii").strip()


def connect(nqn: str, address: str = "127.0.0.1", service: int = 4420, options: str = "", host: str = "") -> str:
    """Connect one path by writing to /dev/nvme-fabrics. Returns the controller's name; an OSError carries the errno."""
    fd, name = _connect(nqn, address, service, options, host)
    os.close(fd)
    return name


def _connect(nqn: str, address: str, service: int = 4420, options: str = "", host: str = "") -> tuple[int, str]:
    line = f"nqn={nqn},transport=tcp,traddr={address},trsvcid={service}"
    line += f",hostnqn={host or host_nqn()},hostid={host_id()}{',' if options else ''}{options}"
    fd = os.open("/dev/nvme-fabrics", os.O_RDWR | os.O_CLOEXEC)
    try:
        os.write(fd, line.encode())
        answer = os.read(fd, 4096).decode()
    except OSError:
        os.close(fd)
        raise
    fields = dict(part.strip().split("=", 1) for part in answer.split(",") if "=" in part)
    return fd, f"nvme{fields['instance']}"


def names_while_open(nqn: str, address: str) -> tuple[list[str], bool]:
    """Connect, delete the controller, and connect again, with what made the first one open. Returns both names, and
    whether the first one was in sysfs in the end.
    """
    fd, first = _connect(nqn, address)
    try:
        delete_controller(first)
        second = connect(nqn, address)
        return [first, second], Path(f"/sys/class/nvme/{first}").exists()
    finally:
        os.close(fd)


def known_options() -> str:
    """What /dev/nvme-fabrics of this kernel understands."""
    fd = os.open("/dev/nvme-fabrics", os.O_RDWR | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096).decode()
    finally:
        os.close(fd)


def connected(nqn: str, namespaces: int, timeout: float = 30.0) -> Subsystem:
    """Wait until the subsystem shows this many namespaces."""

    def look() -> Subsystem | None:
        found = subsystem(nqn)
        return found if found is not None and len(found["namespaces"]) == namespaces else None

    found = wait_until(look, timeout, f"{nqn} with {namespaces} namespaces")
    assert found is not None
    return found


def device(nqn: str, nsid: int, timeout: float = 30.0) -> str:
    """Wait for a namespace; returns its node (/dev/nvme0n1)."""

    def look() -> str:
        found = subsystem(nqn)
        namespaces = found["namespaces"] if found is not None else []
        return next((space["device"] for space in namespaces if space["nsid"] == nsid), "")

    return wait_until(look, timeout, f"namespace {nsid} of {nqn}")


def delete_controller(name: str) -> None:
    """Synchronous in the kernel; blocks while the path is dead and something holds the device."""
    fd = os.open(f"/sys/class/nvme/{name}/delete_controller", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"1")
    finally:
        os.close(fd)


def disconnect(nqn: str, timeout: float = 30.0) -> None:
    """Delete all controllers of a subsystem, used or not, and wait until it is gone."""
    found = subsystem(nqn)
    for controller in found["controllers"] if found is not None else []:
        try:
            delete_controller(controller["name"])
        except FileNotFoundError:  # gone by itself
            continue
    wait_until(lambda: subsystem(nqn) is None, timeout, f"{nqn} to be gone")


def disconnect_all(timeout: float = 30.0) -> None:
    for found in subsystems():
        disconnect(found["nqn"], timeout)


def wait_state(controller: str, state: str, timeout: float = 30.0) -> None:
    """Wait for a controller's state; the kernel sends no event for it."""
    path = Path(f"/sys/class/nvme/{controller}/state")
    wait_until(lambda: path.exists() and path.read_text().strip() == state, timeout, f"{controller} to be {state}")


def claim(path: str) -> str:
    """Try the exclusive claim on a device: "" when granted (and released again), else the name of the errno."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        return errorcode[error.errno or 0]
    os.close(fd)
    return ""


_claims: dict[str, int] = {}


def hold_claim(path: str) -> None:
    _claims[path] = os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)


def write_back(path: str) -> None:
    """BLKFLSBUF, through the claim that is held."""
    fcntl.ioctl(_claims[path], 0x1261, 0)


def release_claims() -> None:
    while _claims:
        os.close(_claims.popitem()[1])
