"""Connecting through /dev/nvme-fabrics, and resolving the names of targets."""

from __future__ import annotations

import errno
import os
import re
import socket
from dataclasses import replace

from nvmeofd.addresses import Address, Transport, normal_ip
from nvmeofd.kernel.controllers import Controllers
from nvmeofd.kernel.interface import ConnectError, ConnectParameters
from nvmeofd.kernel.probe import probe
from nvmeofd.kernel.threads import CannotStart, in_thread
from nvmeofd.model import ControllerId


def parse_options(text: str) -> frozenset[str]:
    """The options a kernel lists when /dev/nvme-fabrics is read before the write: ``…,nqn=%s,queue_size=%d,tls``."""
    names = {item.partition("=")[0] for item in text.strip().split(",")}
    return frozenset(names - {"", "instance", "cntlid"})


# Options of all kernels that do not list theirs (before 5.17): those of Linux 5.4.
_OLD_OPTIONS = parse_options(
    "nqn,transport,traddr,trsvcid,hostnqn,hostid,host_traddr,queue_size,nr_io_queues,reconnect_delay,ctrl_loss_tmo,"
    "keep_alive_tmo,hdr_digest,data_digest"
)

# What the errno of the write says, for people. The address is added by the caller.
_REASONS = {
    errno.EALREADY: "this path is already connected",
    errno.ECONNREFUSED: "connection refused: nothing listens there",
    errno.ETIMEDOUT: "no answer",
    errno.EHOSTUNREACH: "no route to host",
    errno.ENETUNREACH: "network unreachable",
    errno.ENETDOWN: "network is down",
    errno.ECONNRESET: "the target closed the connection",
    errno.EADDRNOTAVAIL: "the source address (host-traddr) is not one of this host",
    errno.ENODEV: "the source interface (host-iface) or address does not exist",
    errno.EIO: "the target refused: it has no such subsystem, or does not allow this host NQN",
    errno.EPROTONOSUPPORT: "what listens there does not speak NVMe/TCP",
    errno.EACCES: "the target refused access",
    errno.ENOKEY: "the target requires DH-HMAC-CHAP authentication, and no secret was given",
    errno.EKEYREJECTED: "DH-HMAC-CHAP authentication failed: the secret is wrong",
    errno.EINVAL: "the kernel refused the parameters: an option does not apply to this transport, its module is "
    "missing, or the host ID is in use with another host NQN",
    errno.EAFNOSUPPORT: "this kind of address is not supported",
    errno.EBUSY: "the target or the transport is busy",
    errno.ENOMEM: "the kernel is out of memory",
    errno.EINTR: "interrupted",
    errno.EPERM: "not permitted",
}


def reason(number: int) -> str:
    """What an errno of the connect means, with its symbol."""
    text = _REASONS.get(number) or os.strerror(number)
    return f"{text} ({errno.errorcode.get(number, number)})"


def build_options(parameters: ConnectParameters) -> dict[str, str | None]:
    """The options of one connection, None for those without a value, in the order in which they are written."""
    address = parameters.address
    options: dict[str, str | int | None] = {"nqn": parameters.nqn, "transport": str(address.transport)}
    if address.transport is not Transport.LOOP:
        options["traddr"] = address.host
    if address.transport in (Transport.TCP, Transport.RDMA):
        options["trsvcid"] = address.port
    options |= {"hostnqn": parameters.host.nqn, "hostid": parameters.host.id}
    optional = {
        "host_traddr": address.host_traddr or None,
        "host_iface": address.host_iface or None,
        "ctrl_loss_tmo": parameters.ctrl_loss_tmo,
        "fast_io_fail_tmo": parameters.fast_io_fail_tmo,
        "reconnect_delay": parameters.reconnect_delay,
        "keep_alive_tmo": parameters.keep_alive_tmo,
        "nr_io_queues": parameters.nr_io_queues,
        "queue_size": parameters.queue_size,
    }
    options |= {key: value for key, value in optional.items() if value is not None}
    flags = {"hdr_digest": parameters.hdr_digest, "data_digest": parameters.data_digest}
    options |= {key: None for key, wanted in flags.items() if wanted}
    return {key: None if value is None else str(value) for key, value in options.items()}


class Fabrics:
    """The character device that makes controllers."""

    def __init__(self, dev: str, controllers: Controllers) -> None:
        self._path = f"{dev}/nvme-fabrics"
        self._controllers = controllers
        self._options: frozenset[str] | None = None

    async def connect(self, parameters: ConnectParameters) -> ControllerId:
        """Connect one path and return its controller.

        Cancelled while the kernel works on it, it returns normally if the connection came about.

        Raises:
            ConnectError: there is no connection.
            OSError: there may be one.
        """
        address = parameters.address
        try:
            text = await in_thread(lambda: self._checked(parameters), name=f"look at {self._path}")
            if address.transport is Transport.TCP:
                try:
                    await probe(address)
                except OSError as error:
                    raise _connect_error(error) from error
            return await in_thread(lambda: self._connect(text), name=f"connect {address}", keep_result=True)
        except CannotStart as error:
            raise ConnectError(errno.EAGAIN, str(error.strerror)) from error

    def _checked(self, parameters: ConnectParameters) -> str:
        """What is to be written. Raises ConnectError."""
        options = build_options(parameters)
        text = ",".join(key if value is None else f"{key}={value}" for key, value in options.items())
        if re.search(r"[\n\0]", text) or any("," in (value or "") for value in options.values()):
            # Checked when the values were made; here it would slip another option in.
            raise ConnectError(errno.EINVAL, "a parameter contains a comma or a control character")
        try:
            unknown = options.keys() - self._supported()
        except OSError as error:
            raise _open_error(error) from error
        if unknown:
            raise ConnectError(errno.EINVAL, f"this kernel does not know the option {min(unknown)}")
        return text

    def _connect(self, text: str) -> ControllerId:
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise _open_error(error) from error
        try:
            try:
                os.write(fd, text.encode())
            except OSError as error:
                raise _connect_error(error) from error
            # The open file holds on to the controller, and the controller to its name (nvmf_dev_release,
            # drivers/nvme/host/fabrics.c; nvme_free_ctrl, core.c). So what sysfs has under that name before the file is
            # closed is this controller, or nothing, if somebody has deleted it.
            return self._connected(os.read(fd, 4096).decode("ascii", "replace"))
        finally:
            os.close(fd)

    def _connected(self, answer: str) -> ControllerId:
        """The controller that the kernel speaks of. Raises ConnectError when it is gone; OSError."""
        match = re.match(r"instance=(\d+),cntlid=\d+", answer)
        if match is None:
            raise OSError(errno.EPROTO, f"connected, but the kernel answered {answer[:64]!r}")
        name = f"nvme{match[1]}"
        made = self._controllers.named(name)
        if made is None:
            raise ConnectError(errno.ENODEV, f"{name} was connected and vanished at once")
        return made

    def _supported(self) -> frozenset[str]:
        # Once: reading them waits for a connect that is under way (nvmf_dev_show() takes nvmf_dev_mutex).
        if self._options is None:
            self._options = self._read_options()
        return self._options

    def _read_options(self) -> frozenset[str]:
        # A descriptor of its own: one on which the list was read answers with its end afterwards.
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return parse_options(os.read(fd, 1 << 16).decode())
        except OSError as error:
            if error.errno == errno.EINVAL:  # Linux before 5.17 has nothing to say before the write
                return _OLD_OPTIONS
            raise
        finally:
            os.close(fd)


def _connect_error(error: OSError) -> ConnectError:
    number = error.errno or errno.EIO
    return ConnectError(number, reason(number))


def _open_error(error: OSError) -> ConnectError:
    text = f"/dev/nvme-fabrics: {error.strerror}"
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        text = "/dev/nvme-fabrics is missing: the kernel module nvme_fabrics is not loaded"
    return ConnectError(error.errno or errno.EIO, text)


async def resolve(address: Address) -> tuple[Address, ...]:
    """The addresses behind a host name, in the resolver's order; an address stays as it is. Raises ConnectError."""
    if not address.needs_resolving:
        return (address,)
    try:
        # AI_ADDRCONFIG: only families that this host has an address of, or half of the attempts would be for nothing.
        found = await in_thread(
            lambda: socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG),
            name=f"resolve {address.host}",
        )
    except (OSError, UnicodeError) as error:  # socket.gaierror is an OSError, its errno is not one
        text = error.strerror if isinstance(error, OSError) else str(error)
        raise ConnectError(errno.EHOSTUNREACH, f"cannot resolve {address.host}: {text}") from error
    hosts = dict.fromkeys(_host(entry[4]) for entry in found)
    return tuple(replace(address, host=host) for host in hosts)


def _host(sockaddr: tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]) -> str:
    host = str(sockaddr[0])
    scope = sockaddr[3] if len(sockaddr) == 4 else 0
    if scope and "%" not in host:  # a link-local address means nothing without its interface
        host = f"{host}%{socket.if_indextoname(scope)}"
    return normal_ip(host)
