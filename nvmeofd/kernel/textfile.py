"""A file that others read while it is replaced. Everything here blocks, and may hang with its file system."""

from __future__ import annotations

import contextlib
import os

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class TextFile:
    """One file with one writer.

    Its directory may belong to somebody else, who may put anything there: no link in place of the file, or of the new
    one that is about to replace it, is followed.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._directory, self._name = os.path.split(path)
        # Always the same, so that what a crash left is found again; hidden, and not *.prom, so that nobody reads it.
        self._new = f".{self._name}.new"
        self._written: tuple[int, int] | None = None  # device and inode

    def replace(self, content: bytes) -> None:
        """Readers see the old content or the new one, never a part. Mode 0644. Raises OSError."""
        directory = os.open(self._directory, _DIRECTORY)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._new, dir_fd=directory)
            with open(os.open(self._new, _NEW, 0o600, dir_fd=directory), "wb") as file:
                file.write(content)
                os.fchmod(file.fileno(), 0o644)  # whatever the umask
                status = os.fstat(file.fileno())
            os.rename(self._new, self._name, src_dir_fd=directory, dst_dir_fd=directory)
            self._written = status.st_dev, status.st_ino
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(self._new, dir_fd=directory)
            raise
        finally:
            os.close(directory)

    def remove(self) -> None:
        """Remove it, if it is still what was written here. Raises OSError."""
        if self._written is None:
            return
        directory = os.open(self._directory, _DIRECTORY)
        try:
            status = os.stat(self._name, dir_fd=directory, follow_symlinks=False)
            if (status.st_dev, status.st_ino) == self._written:
                os.unlink(self._name, dir_fd=directory)
        except FileNotFoundError:
            pass
        finally:
            os.close(directory)
