"""What can go wrong between a test and its guest; each error says which side failed: only one of them is a bug."""

from __future__ import annotations


class GuestError(Exception):
    """Anything the harness reports about a guest."""


class MissingTool(GuestError):
    """A program of the host is missing. Tests fail with this and are not skipped: a skipped test proves nothing."""

    def __init__(self, tool: str, package: str) -> None:
        super().__init__(f"{tool} is not installed; it is in the Debian package {package} (apt-get install {package})")


class BuildFailed(GuestError):
    """A program that builds the image ended with an error."""


class GuestDied(GuestError):
    """QEMU ended, or the guest stopped answering for good. The message carries the end of its console."""


class GuestTimeout(GuestError):
    """The guest is alive but did not answer within the deadline."""


class CommandFailed(GuestError):
    """A command in the guest ended with a status that the caller did not expect."""


class GuestCallError(GuestError):
    """A function called in the guest raised; type, errno and traceback are apart, for tests to look at."""

    def __init__(self, kind: str, message: str, errno: int | None, traceback: str) -> None:
        super().__init__(f"{kind}: {message}\n--- in the guest ---\n{traceback}")
        self.kind = kind
        self.message = message
        self.errno = errno
        self.traceback = traceback
