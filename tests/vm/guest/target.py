"""The NVMe/TCP target of the kernel, made through configfs: subsystems, namespaces, listeners, and their failures."""

from __future__ import annotations

import base64
import contextlib
import os
import uuid
import zlib
from pathlib import Path

from .waiting import command

CONFIG = Path("/sys/kernel/config/nvmet")
FILES = Path("/var/lib/vm/namespaces")
ADDRESSES = {1: "127.0.0.1", 2: "127.0.0.2", 3: "127.0.0.3", 4: "127.0.0.4", 5: "::1"}
MIB = 1 << 20
SIZE = 320 * MIB  # mkfs.xfs refuses less than 300 MiB


def setup() -> None:
    """Load the target and make its listeners: port n of `ADDRESSES`, TCP 4420."""
    for module in ("configfs", "nvmet-tcp", "nvmet"):
        command(["modprobe", module])
    if not os.path.ismount("/sys/kernel/config"):
        command(["mount", "-t", "configfs", "configfs", "/sys/kernel/config"])
    FILES.mkdir(parents=True, exist_ok=True)
    for port in ADDRESSES:
        add_port(port)


def add_port(port: int, address: str = "", service: int = 4420) -> None:
    """Make a listener. It accepts connections only once a subsystem is linked to it."""
    path = CONFIG / "ports" / str(port)
    if path.exists():
        return
    address = address or ADDRESSES[port]
    path.mkdir()
    _set(path / "addr_trtype", "tcp")
    _set(path / "addr_adrfam", "ipv6" if ":" in address else "ipv4")
    _set(path / "addr_traddr", address)
    _set(path / "addr_trsvcid", str(service))


def namespace_uuid(nqn: str, nsid: int) -> str:
    """The UUID that `add_namespace` gives: derived, so that a test can name a namespace without asking."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{nqn}#{nsid}"))


def namespace_nguid(nqn: str, nsid: int) -> str:
    return uuid.uuid5(uuid.NAMESPACE_DNS, f"{nqn}#{nsid}").hex


def add_subsystem(
    nqn: str,
    namespaces: int = 1,
    ports: list[int] | None = None,
    hosts: list[str] | None = None,
    size: int = SIZE,
) -> list[str]:
    """A subsystem with namespaces 1 … n on files, linked to ports; `hosts` None lets any host in. Returns the UUIDs."""
    path = CONFIG / "subsystems" / nqn
    path.mkdir()
    _set(path / "attr_serial", uuid.uuid5(uuid.NAMESPACE_URL, nqn).hex[:20])
    _set(path / "attr_allow_any_host", "1" if hosts is None else "0")
    for host in hosts or []:
        allow_host(nqn, host)
    uuids = [add_namespace(nqn, nsid, size) for nsid in range(1, namespaces + 1)]
    for port in [1] if ports is None else ports:
        link(nqn, port)
    return uuids


def add_namespace(nqn: str, nsid: int, size: int = SIZE, device: str = "", wwid: str = "") -> str:
    """A namespace on a fresh file of zeros, or on `device`. Returns its UUID (`wwid` if given)."""
    path = CONFIG / "subsystems" / nqn / "namespaces" / str(nsid)
    path.mkdir()
    identity = wwid or namespace_uuid(nqn, nsid)
    if not device:
        file = backing_file(nqn, nsid)
        with contextlib.suppress(FileNotFoundError):
            file.unlink()
        with file.open("wb") as handle:
            handle.truncate(size)
        device = str(file)
    _set(path / "device_path", device)
    _set(path / "device_uuid", identity)
    _set(path / "device_nguid", namespace_nguid(nqn, nsid))
    _set(path / "enable", "1")
    return identity


def backing_file(nqn: str, nsid: int) -> Path:
    return FILES / f"{nqn.replace(':', '_').replace('/', '_')}.{nsid}"


def remove_namespace(nqn: str, nsid: int, keep_data: bool = False) -> None:
    path = CONFIG / "subsystems" / nqn / "namespaces" / str(nsid)
    _set(path / "enable", "0")
    path.rmdir()
    if not keep_data:
        with contextlib.suppress(FileNotFoundError):
            backing_file(nqn, nsid).unlink()


def enable_namespace(nqn: str, nsid: int, on: bool) -> None:
    """Off: the namespace vanishes from every host at once. On: it is back, with its identity and its data."""
    _set(CONFIG / "subsystems" / nqn / "namespaces" / str(nsid) / "enable", "1" if on else "0")


def grow_namespace(nqn: str, nsid: int, size: int) -> None:
    os.truncate(backing_file(nqn, nsid), size)
    _set(CONFIG / "subsystems" / nqn / "namespaces" / str(nsid) / "revalidate_size", "1")


def link(nqn: str, port: int) -> None:
    """Offer the subsystem on a port."""
    (CONFIG / "ports" / str(port) / "subsystems" / nqn).symlink_to(CONFIG / "subsystems" / nqn)


def unlink(nqn: str, port: int) -> None:
    """Path loss: connections of this subsystem through this port end, reconnects are refused."""
    (CONFIG / "ports" / str(port) / "subsystems" / nqn).unlink()


def allow_host(nqn: str, host: str) -> None:
    known = CONFIG / "hosts" / host
    known.mkdir(exist_ok=True)
    (CONFIG / "subsystems" / nqn / "allowed_hosts" / host).symlink_to(known)


def deny_host(nqn: str, host: str) -> None:
    (CONFIG / "subsystems" / nqn / "allowed_hosts" / host).unlink()


def require_secret(host: str) -> None:
    """From now on a host that subsystems allow by name has to know a secret (DH-HMAC-CHAP), which it is not told."""
    key = b"known to the target only, and no"[:32]
    encoded = base64.b64encode(key + zlib.crc32(key).to_bytes(4, "little")).decode()
    _set(CONFIG / "hosts" / host / "dhchap_key", f"DHHC-1:00:{encoded}:")


def forget_host(host: str) -> None:
    """A host that no subsystem allows by name any more, and its secret."""
    (CONFIG / "hosts" / host).rmdir()


def subsystems() -> list[str]:
    path = CONFIG / "subsystems"
    return sorted(entry.name for entry in path.iterdir()) if path.exists() else []


def linked(nqn: str) -> list[int]:
    """The ports that offer the subsystem."""
    return sorted(int(port.name) for port in (CONFIG / "ports").iterdir() if (port / "subsystems" / nqn).is_symlink())


def remove_subsystem(nqn: str) -> None:
    """Take a subsystem away as a target would that is being decommissioned: hosts still connected lose it."""
    for port in linked(nqn):
        unlink(nqn, port)
    path = CONFIG / "subsystems" / nqn
    for namespace in (path / "namespaces").iterdir():
        remove_namespace(nqn, int(namespace.name))
    for host in (path / "allowed_hosts").iterdir():
        host.unlink()
    path.rmdir()


def teardown() -> None:
    """Remove everything `setup` and the tests made, save the listeners of `ADDRESSES`."""
    for nqn in subsystems():
        remove_subsystem(nqn)
    for host in (CONFIG / "hosts").iterdir():
        host.rmdir()
    for port in (CONFIG / "ports").iterdir():
        if int(port.name) not in ADDRESSES:
            port.rmdir()
    for name in command(["dmsetup", "ls", "--target", "linear"]).split():
        if name.startswith("backing-"):
            remove_device(name.removeprefix("backing-"))


def add_device(name: str, size: int = SIZE) -> str:
    """A device-mapper device for `add_namespace`, to be suspended or made to fail later. Returns its path."""
    file = FILES / f"{name}.backing"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as handle:
        handle.truncate(size)
    loop = command(["losetup", "--find", "--show", str(file)]).strip()
    command(["dmsetup", "create", f"backing-{name}", "--table", f"0 {size // 512} linear {loop} 0"])
    return f"/dev/mapper/backing-{name}"


def hang_device(name: str) -> None:
    """Every I/O on the device waits until `resume_device`."""
    command(["dmsetup", "suspend", "--nolockfs", "--noflush", f"backing-{name}"])


def resume_device(name: str) -> None:
    command(["dmsetup", "resume", f"backing-{name}"])


def fail_device(name: str) -> None:
    """Every I/O on the device ends in an error."""
    sectors = command(["dmsetup", "table", f"backing-{name}"]).split()[1]
    command(["dmsetup", "suspend", "--nolockfs", "--noflush", f"backing-{name}"])
    command(["dmsetup", "load", f"backing-{name}", "--table", f"0 {sectors} error"])
    command(["dmsetup", "resume", f"backing-{name}"])


def remove_device(name: str) -> None:
    command(["dmsetup", "remove", "--retry", f"backing-{name}"])
    file = FILES / f"{name}.backing"
    for line in command(["losetup", "--noheadings", "--output", "NAME", "--associated", str(file)]).split():
        command(["losetup", "--detach", line])
    file.unlink()


def _set(path: Path, value: str) -> None:
    # One unbuffered write: configfs acts on each.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)
