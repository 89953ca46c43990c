"""The errors a caller can get, one class for each name of the D-Bus API.

The class name is the last part of the D-Bus error name; :func:`dbus_name` is the only place that knows the prefix.
"""

from __future__ import annotations

PREFIX = "org.nvmeofd1.Error."


class NvmeofdError(Exception):
    """Base of all errors that are reported to a caller. The message is for people and says what to do next."""

    @property
    def log_fields(self) -> dict[str, str]:
        """What a log record about the error has, see :mod:`nvmeofd.log`."""
        return {"ERROR": dbus_name(self)}


class InvalidArgument(NvmeofdError):
    """A malformed NQN, namespace, address, path or option. The message names it."""


class InUse(NvmeofdError):
    """A subsystem was not disconnected because something uses it. The message lists the users."""


class Shared(NvmeofdError):
    """A controller of the subsystem belongs to another orchestrator."""


class AlreadyStaged(NvmeofdError):
    """The staging path holds another volume, or the volume is staged somewhere else."""


class NotStaged(NvmeofdError):
    """The path is a mount that this daemon did not make."""


class PathNotEmpty(NvmeofdError):
    """The staging path exists and is not an empty directory (an empty file for block volumes)."""


class ConnectFailed(NvmeofdError):
    """Too few paths could be connected. The message has every address and its reason."""


class AuthenticationFailed(NvmeofdError):
    """The target wants DH-HMAC-CHAP and the secret is missing, wrong or unsupported."""


class NamespaceNotFound(NvmeofdError):
    """The subsystem is connected, but the namespace did not appear in time."""


class NoFilesystem(NvmeofdError):
    """The device holds no filesystem, and formatting was not asked for."""


class WrongFilesystem(NvmeofdError):
    """The device holds another filesystem than the one asked for."""


class NotBlank(NvmeofdError):
    """Formatting was asked for, but the device is not provably blank."""


class FormatFailed(NvmeofdError):
    """mkfs failed."""


class CheckFailed(NvmeofdError):
    """fsck found damage that it does not repair by itself."""


class MountFailed(NvmeofdError):
    """The filesystem or device could not be mounted."""


class UnmountFailed(NvmeofdError):
    """The staging path could not be unmounted."""


class DisconnectFailed(NvmeofdError):
    """The kernel did not delete a controller, or the state of the subsystem could not be read."""


class Timeout(NvmeofdError):
    """The deadline passed. The message says in which step and what is still running."""


class Cancelled(NvmeofdError):
    """The job was cancelled on request."""


class Busy(NvmeofdError):
    """Too much work is queued, or the path is reserved by work on another subsystem."""


class ShuttingDown(NvmeofdError):
    """The daemon is stopping and takes no new work."""


class Failed(NvmeofdError):
    """An internal error. The details are in the daemon's log, never in the message."""


def dbus_name(error: NvmeofdError) -> str:
    """The D-Bus error name of ``error``."""
    return PREFIX + type(error).__name__
