"""Connecting the paths of a subsystem and waiting for a namespace of it."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

from nvmeofd.addresses import Address
from nvmeofd.errors import AuthenticationFailed, ConnectFailed, InvalidArgument, NamespaceNotFound
from nvmeofd.kernel.interface import ConnectError, ConnectParameters, DeviceChanged
from nvmeofd.log import log
from nvmeofd.model import HostIdentity, Namespace, Step, parse_host_id, parse_nqn
from nvmeofd.operations.guard import StillUsed, disconnect_unused

if TYPE_CHECKING:
    from nvmeofd.jobs import Job
    from nvmeofd.operations.core import Core
    from nvmeofd.operations.transaction import Transaction
    from nvmeofd.requests import StageRequest

_AUTHENTICATION = frozenset({errno.ENOKEY, errno.EKEYREJECTED, errno.EKEYEXPIRED})
# The wait for a namespace ends this part of the time for undoing before the job's own deadline does, so that the
# answer is the telling one (NamespaceNotFound) and not Timeout.
_WAIT_MARGIN = 0.1


async def connect_paths(core: Core, job: Job, request: StageRequest, transaction: Transaction) -> tuple[Address, ...]:
    """Connect every address that is not connected yet and return the resolved addresses.

    Raises:
        ConnectFailed: fewer than ``min_paths`` paths are live; has every address and its reason.
        AuthenticationFailed: the same, and every failure is one of authentication.
        InvalidArgument: the host has no identity, or cannot have several paths.
    """
    if len(request.addresses) > 1 and not core.kernel.multipath():
        raise InvalidArgument(
            "addresses: this host has nvme_core.multipath=N, so every path would be a disk of its own; "
            "give one address, or boot with nvme_core.multipath=Y"
        )
    host = await host_identity(core, request)
    before = core.kernel.subsystem(request.nqn)
    # an earlier attempt may have ended without a word on its outcome
    core.ownership.adopt(request.nqn, before)
    known = {controller.instance for controller in before.controllers} if before else set()
    transaction.on_failure(f"disconnect {request.nqn}", lambda: _disconnect_new(core, job, request.nqn, known))
    failures: dict[str, str] = {}
    errors: list[int] = []
    resolved: list[Address] = []
    for address in request.addresses:
        job.enter(Step.CONNECTING, str(address))
        try:
            candidates = await core.kernel.resolve(address)
        except ConnectError as error:
            failures[str(address)] = str(error)
            errors.append(error.errno)
            continue
        for candidate in candidates:
            try:
                await _connect_one(core, job, request, host, candidate)
            except ConnectError as error:
                where = str(address) if str(address) == str(candidate) else f"{address} ({candidate.host})"
                failures[where] = str(error)
                errors.append(error.errno)
                log.warning("%s: %s: %s", job, where, error)
                if candidate is candidates[-1]:
                    resolved.append(candidate)
            else:
                resolved.append(candidate)
                break
    subsystem = core.kernel.subsystem(request.nqn)
    controllers = subsystem.controllers if subsystem else ()
    serving = [c for c in controllers if c.host_nqn == host.nqn and any(map(c.serves, resolved))]
    live = sum(controller.live for controller in serving)
    for controller in serving:
        if not controller.live:
            failures[controller.address] = f"{controller.name} is {controller.state}, not live"
    if live < request.min_paths:
        reasons = "; ".join(f"{where}: {reason}" for where, reason in failures.items())
        if errors and all(error in _AUTHENTICATION for error in errors):
            raise AuthenticationFailed(reasons)
        raise ConnectFailed(f"{live} of {request.min_paths} needed paths are live: {reasons}")
    return tuple(resolved)


async def host_identity(core: Core, request: StageRequest) -> HostIdentity:
    """The identity for a connection: from the request, else of the host. Raises InvalidArgument."""
    options = request.connect
    if options.host_nqn is not None and options.host_id is not None:
        return HostIdentity(options.host_nqn, options.host_id)
    try:
        host = await core.kernel.establish_identity()
        nqn = options.host_nqn or parse_nqn(host.nqn, what="/etc/nvme/hostnqn")
        return HostIdentity(nqn, options.host_id or parse_host_id(host.id))
    except (OSError, ValueError) as error:
        raise InvalidArgument(
            f"host-nqn: not given, and this host has no identity: {error}; repair that, or give host-nqn and host-id"
        ) from error


async def wait_for_namespace(core: Core, job: Job, request: StageRequest) -> Namespace:
    """Wait until the namespace is there, asking the controllers once, at half the time, to scan again.

    Raises:
        NamespaceNotFound: names what is there instead.
    """
    job.enter(Step.WAITING, str(request.namespace))
    loop = asyncio.get_running_loop()
    start, reserve = loop.time(), job.deadline - job.soft_deadline
    end = job.soft_deadline - reserve * _WAIT_MARGIN
    rescan_at = start + (end - start) / 2
    rescanned = False
    with core.changes.subscribe() as changed:
        while True:
            changed.clear()
            subsystem = core.kernel.subsystem(request.nqn)
            namespaces = subsystem.namespaces if subsystem else ()
            found = [namespace for namespace in namespaces if namespace.matches(request.namespace)]
            if len(found) > 1:
                names = ", ".join(f"{namespace.name} ({namespace.wwid})" for namespace in found)
                raise NamespaceNotFound(f"{request.namespace} is not unique in {request.nqn}: {names}")
            if found and found[0].size > 0:
                return found[0]
            if loop.time() >= end:
                there = ", ".join(f"nsid.{ns.nsid} {ns.wwid}" for ns in namespaces) or "none"
                raise NamespaceNotFound(
                    f"{request.namespace} did not appear in {request.nqn} within {end - start:.0f} s; "
                    f"namespaces there: {there}"
                )
            if not rescanned and loop.time() >= rescan_at:
                rescanned = True
                for controller in subsystem.live_controllers if subsystem else ():
                    try:
                        await core.kernel.rescan(controller)
                    except (OSError, DeviceChanged) as error:
                        log.warning("%s: cannot rescan %s: %s", job, controller.name, error)
                continue
            try:
                async with asyncio.timeout_at(end if rescanned else rescan_at):
                    await changed.wait()
            except TimeoutError:
                pass


async def _connect_one(core: Core, job: Job, request: StageRequest, host: HostIdentity, address: Address) -> None:
    """Connect one resolved address unless it is. Raises ConnectError."""
    before = core.kernel.subsystem(request.nqn)
    known = before.controllers if before else ()
    # one that is being deleted is no path; the kernel says EALREADY until it is gone
    if any(c.serves(address) and c.host_nqn == host.nqn and not c.going for c in known):
        return
    config, options = core.config.connect, request.connect
    parameters = ConnectParameters(
        nqn=request.nqn,
        address=address,
        host=host,
        ctrl_loss_tmo=_first(options.ctrl_loss_tmo, config.ctrl_loss_tmo),
        fast_io_fail_tmo=_first(options.fast_io_fail_tmo, config.fast_io_fail_tmo),
        reconnect_delay=_first(options.reconnect_delay, config.reconnect_delay),
        keep_alive_tmo=_first(options.keep_alive_tmo, config.keep_alive_tmo),
        nr_io_queues=_first(options.nr_io_queues, config.nr_io_queues),
        queue_size=_first(options.queue_size, config.queue_size),
        hdr_digest=options.hdr_digest,
        data_digest=options.data_digest,
    )
    core.ownership.intend(request.nqn, address, host.nqn, known)
    try:
        made = await core.kernel.connect(parameters)
    except ConnectError as error:
        core.ownership.not_connected(request.nqn)
        if error.errno != errno.EALREADY:
            raise
        # somebody was faster; fine, unless it was done for another host identity
        _require_host(core, request.nqn, address, host, error)
        return
    except OSError as error:
        core.ownership.adopt(request.nqn, core.kernel.subsystem(request.nqn))
        raise ConnectError(error.errno or errno.EIO, error.strerror or str(error)) from error
    except asyncio.CancelledError as error:
        if isinstance(error.__cause__, ConnectError | None):
            core.ownership.not_connected(request.nqn)
        else:
            core.ownership.adopt(request.nqn, core.kernel.subsystem(request.nqn))
        raise
    core.ownership.connected(request.nqn, made)
    job.checkpoint()
    subsystem = core.kernel.subsystem(request.nqn)
    if subsystem is None or made not in [controller.id for controller in subsystem.controllers]:
        try:
            core.ownership.prune(request.nqn, subsystem)
        except OSError as error:
            log.warning("%s: cannot tell what became of %s: %s", job, made.name, error)
        raise ConnectError(
            errno.ENODEV,
            f"{made.name} was connected and is not a path of the subsystem: somebody has deleted it, the kernel has "
            "not finished connecting it, or the target gives another NQN",
        )
    log.info("%s: connected %s as %s", job, address, made.name)


def _require_host(core: Core, nqn: str, address: Address, host: HostIdentity, error: ConnectError) -> None:
    """Raises ConnectError when the path that the kernel knows already was connected for another host."""
    subsystem = core.kernel.subsystem(nqn)
    same = [c for c in subsystem.controllers if c.serves(address)] if subsystem else []
    if not any(controller.host_nqn == host.nqn for controller in same):
        others = ", ".join(f"{c.name} as {c.host_nqn}" for c in same) or "not a path yet, or not any more"
        raise ConnectError(error.errno, f"already connected, but not as {host.nqn}: {others}") from error


async def _disconnect_new(core: Core, job: Job, nqn: str, known: set[int]) -> None:
    """Undo of connecting: what is there beyond the ``known`` instances, and is this daemon's.

    What others use by now stays, and is looked at again later.
    """
    core.ownership.adopt(nqn, core.kernel.subsystem(nqn))
    if core.workers.stage_waiting(nqn):
        return
    try:
        await disconnect_unused(
            core, job, nqn, lambda now: [c for c in core.ownership.owned(now) if c.instance not in known]
        )
    except StillUsed as used:
        core.count("disconnects-deferred")
        log.info("%s: %s stays connected while it is used: %s", job, nqn, used)


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
