"""Who this host is to targets: /etc/nvme/hostnqn and /etc/nvme/hostid, made once when they are not there.

The two files are shared with nvme-cli, which does the same: the NQN is ``nqn.2014-08.org.nvmexpress:uuid:`` and the
host's UUID, the identifier is that UUID (``nvmf_hostnqn_generate_from_hostid`` and ``nvmf_host_get_ids`` of libnvme,
src/nvme/fabrics.c and tree.c; ``nvme gen-hostnqn``). The UUID comes from the first of these that has a usable one:

1. DMI: /sys/class/dmi/id/product_uuid. SMBIOS up to 2.5 stores the first three fields the other way round, and the
   kernel takes care of that (``dmi_save_uuid``, drivers/firmware/dmi_scan.c), so the text is taken as it is; decoding
   the raw table has given other values (libnvme issue 263).
2. The device tree of a POWER machine: /proc/device-tree/ibm,partition-uuid.
3. /etc/machine-id, hashed as machine-id(5) asks for. nvme-cli does so since 3.0 (pull request 3995), with a key of
   its own.
4. Chance.

Nothing that is there is ever changed. Files are made aside and linked into place, which fails if there is one by then.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import hmac
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from typing import NamedTuple

from nvmeofd.errors import InvalidArgument
from nvmeofd.kernel.roots import Roots
from nvmeofd.log import log
from nvmeofd.model import UUID_NQN, HostIdentity, parse_host_id, parse_nqn

_NQN, _ID = "hostnqn", "hostid"
# Somebody else makes the files at the same time: how often to begin again. The second round finds theirs.
_ROUNDS = 5

# What firmware has instead of a UUID of its own. Values of four bytes or fewer over and over are found by counting.
_JUNK = frozenset(
    uuid.UUID(text)
    for text in (
        # As in src/libsystemd/sd-id128/id128-util.c of systemd.
        "00010203-0405-0607-0809-0a0b0c0d0e0f",
        "01020304-0506-0708-090a-0b0c0d0e0f10",
        # The default of a firmware vendor, on boards of many makers, in both byte orders.
        "03000200-0400-0500-0006-000700080009",
        "00020003-0004-0005-0006-000700080009",
        "00000000-0000-0000-0807-060504030201",
    )
)
_MOSTLY_ONE = 4

# Which hash of the machine ID this is; any other value would give other UUIDs.
_APPLICATION = bytes.fromhex("4f0b3d0c6e2f4a6c9d7c1f5b8e6a2d91")


class _Found(NamedTuple):
    """The content of the files, None for one that is not there."""

    nqn: str | None
    id: str | None

    @property
    def complete(self) -> HostIdentity | None:
        return None if self.nqn is None or self.id is None else HostIdentity(self.nqn, self.id)


class Identity:
    """The identity of this host."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots
        # What could not be written, and holds as long as this process or until somebody writes the files.
        self._unwritten: HostIdentity | None = None
        # Once: two threads that make an identity at the same time are to agree.
        self._chance = uuid.uuid4()

    def current(self) -> HostIdentity:
        """What the files say, or what :meth:`establish` made without being able to write it.

        Raises:
            FileNotFoundError: a file is not there.
            OSError: a file cannot be read.
            ValueError: a file is malformed, or empty. Names the file.
        """
        found = self._read_both()
        complete, kept = found.complete, self._unwritten
        if complete is not None:
            return complete
        if kept is not None and found.nqn in (None, kept.nqn) and found.id in (None, kept.id):
            return kept
        name = _NQN if found.nqn is None else _ID
        raise FileNotFoundError(errno.ENOENT, "does not exist", self._path(name))

    def establish(self) -> HostIdentity:
        """The same, and what is not there is made: one from the other where that is possible, else both anew. Blocks.

        Where they cannot be written (/etc is read-only) the identity is kept in memory, if it comes out the same at
        the next start. Fails when it would not: a host that is somebody else after each start is shut out by targets.

        Raises:
            OSError: a file can be neither read nor made.
            ValueError: a file is malformed, or empty. Names the file, and nothing was made.
        """
        with contextlib.suppress(FileNotFoundError):
            return self.current()
        with self._alone():
            return self._establish()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No other thread or daemon makes files meanwhile: two could get one file in each.

        What is locked is nobody else's to open: whoever can may hold the lock for as long as he likes.
        """
        try:
            directory = os.open(self._roots.run_nvmeofd, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield  # not run as a service
            return
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield
        finally:
            os.close(directory)

    def _establish(self) -> HostIdentity:
        for _ in range(_ROUNDS):
            with contextlib.suppress(FileNotFoundError):
                return self.current()
            found = self._read_both()
            host, source, lasting = self._wanted(found)
            try:
                made = self._write(host, found)
            except OSError as error:
                if not lasting:
                    raise OSError(
                        error.errno or errno.EIO,
                        f"cannot be written ({error.strerror}), and this host has neither a usable DMI UUID nor a "
                        "lasting machine ID to tell it by without",
                        self._path(_NQN if found.nqn is None else _ID),
                    ) from error
                self._unwritten = host
                log.warning(
                    "%s and %s cannot be written (%s): this host is %s, made from %s, as long as neither that nor "
                    "the files change",
                    self._path(_NQN), _ID, error.strerror, host.nqn, source,
                )  # fmt: skip
                return host
            if self._stands(made, host):
                log.info("made %s: this host is %s, from %s", " and ".join(sorted(made)), host.nqn, source)
                return host
        raise OSError(errno.EBUSY, "it changes all the time, or is a link to nothing", self._path(_NQN))

    # ---- what it is to be

    def _wanted(self, found: _Found) -> tuple[HostIdentity, str, bool]:
        """The identity to make, where it is from, and whether that would be the same another time."""
        if found.id is not None:
            return HostIdentity(UUID_NQN + found.id, found.id), self._path(_ID), True
        if found.nqn is not None and (inside := HostIdentity(found.nqn, "").nqn_uuid):
            return HostIdentity(found.nqn, inside), self._path(_NQN), True
        value, source, lasting = self._own_uuid()
        return HostIdentity(found.nqn or f"{UUID_NQN}{value}", str(value)), source, lasting

    def _own_uuid(self) -> tuple[uuid.UUID, str, bool]:
        for source, path in (
            ("the DMI UUID", f"{self._roots.sys}/class/dmi/id/product_uuid"),
            ("the device tree", f"{self._roots.proc}/device-tree/ibm,partition-uuid"),
        ):
            value = firmware_uuid(_text(path))
            if value is not None:
                return value, source, True
        value = machine_uuid(_text(self._roots.machine_id)) if self._lasting_machine_id() else None
        if value is not None:
            return value, "the machine ID", True
        return self._chance, "a random number", False

    def _lasting_machine_id(self) -> bool:
        """Without a writable /etc systemd mounts a file over it that is another one after each boot: machine-id(5)."""
        path = self._roots.machine_id
        try:
            return os.stat(path).st_dev == os.stat(os.path.dirname(path)).st_dev
        except OSError:
            return False

    # ---- files

    def _path(self, name: str) -> str:
        return f"{self._roots.etc_nvme}/{name}"

    def _read_both(self) -> _Found:
        """Raises OSError, ValueError."""
        try:
            nqn, host_id = self._read(_NQN), self._read(_ID)
            return _Found(
                None if nqn is None else parse_nqn(nqn, what=self._path(_NQN)),
                None if host_id is None else parse_host_id(host_id, what=self._path(_ID)),
            )
        except InvalidArgument as error:
            raise ValueError(str(error)) from error

    def _read(self, name: str) -> str | None:
        """The first line, as libnvme reads it; None when there is no file. Raises OSError, ValueError."""
        path = self._path(name)
        try:
            # not blocking: somebody may have put a pipe there
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        try:
            raw = os.read(fd, 4096)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from error
        finally:
            os.close(fd)
        try:
            line = raw.decode().partition("\n")[0].strip()
        except UnicodeDecodeError:
            raise ValueError(f"{path}: not valid UTF-8") from None
        if not line:
            # Never taken for absent: a shell that is about to write it has made it empty first.
            raise ValueError(f"{path}: it is empty; write it, or remove it and it is made anew")
        return line

    def _write(self, host: HostIdentity, found: _Found) -> dict[str, os.stat_result]:
        """Make the files that are not there; returns those that were made here. Raises OSError, having made none."""
        directory = self._roots.etc_nvme
        if not os.path.isdir(directory):
            os.mkdir(directory)
            os.chmod(directory, 0o755)  # noqa: S103 - for everybody to read, as nvme-cli's packages make it
            _sync(os.path.dirname(directory))
        missing = {_NQN: host.nqn} if found.nqn is None else {}
        missing |= {_ID: host.id} if found.id is None else {}
        made: dict[str, os.stat_result] = {}
        with contextlib.ExitStack() as stack:
            # All of them first: then they come into being at almost the same moment.
            aside = {name: _aside(directory, name, value, stack) for name, value in missing.items()}
            try:
                for name, path in aside.items():
                    with contextlib.suppress(FileExistsError):
                        os.link(path, self._path(name))
                        made[name] = os.stat(path)
                _sync(directory)
            except OSError:
                self._take_back(made)
                raise
        return made

    def _stands(self, made: dict[str, os.stat_result], host: HostIdentity) -> bool:
        """Whether the files now say what was made here.

        If not, somebody else was at it, too, and may have got one of the two files in: what was made here gives way,
        so that theirs decides. (A shell that overwrites a file it had found missing is beyond help.) Raises ValueError.
        """
        try:
            if self._read_both().complete == host:
                return bool(made)
        except ValueError:
            self._take_back(made)
            raise
        self._take_back(made)
        return False

    def _take_back(self, made: dict[str, os.stat_result]) -> None:
        for name, ours in made.items():
            with contextlib.suppress(OSError):
                if os.path.samestat(os.lstat(self._path(name)), ours):
                    os.unlink(self._path(name))


def _aside(directory: str, name: str, value: str, stack: contextlib.ExitStack) -> str:
    """A temporary file with the content, on disk, removed with the stack. Raises OSError."""
    fd, path = tempfile.mkstemp(prefix=f".{name}.", dir=directory)
    stack.callback(os.unlink, path)
    with open(fd, "wb") as file:
        file.write(f"{value}\n".encode())
        os.fchmod(fd, 0o644)  # as nvme-cli's packages leave them
        file.flush()
        os.fsync(fd)
    return path


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _text(path: str) -> str:
    """What is in a file, "" when it is not there or not to be read."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(256)
    except OSError:
        return ""


def firmware_uuid(text: str) -> uuid.UUID | None:
    """The UUID that firmware reports, None when it is none, or one that many machines share."""
    text = text.strip(" \t\r\n\0")
    if not re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", text):
        return None
    value = uuid.UUID(text)
    return None if value in _JUNK or len(set(value.bytes)) <= _MOSTLY_ONE else value


def machine_uuid(text: str) -> uuid.UUID | None:
    """A UUID of the host out of its machine ID, which must not be told to others. None when it has none (yet).

    Computed as sd_id128_get_machine_app_specific(3) does.
    """
    if not re.fullmatch(r"[0-9a-f]{32}", text := text.strip()) or not text.strip("0"):
        return None
    digest = hmac.new(bytes.fromhex(text), _APPLICATION, hashlib.sha256).digest()
    return uuid.UUID(bytes=digest[:16], version=4)
