"""The file tree of the simulated host: just enough for staging paths."""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Callable
from enum import Enum, auto

from nvmeofd.kernel.interface import PathKind, StagingPathError
from nvmeofd.model import VolumeType


class Node(Enum):
    DIRECTORY = auto()
    EMPTY_FILE = auto()
    FILE = auto()
    SYMLINK = auto()


def os_error(number: int, path: str = "") -> OSError:
    return OSError(number, os.strerror(number), path or None)


class Files:
    """Paths and what is there. ``mounted`` tells the kind of what is mounted on a path, if anything is."""

    def __init__(self, mounted: Callable[[str], VolumeType | None]) -> None:
        self._mounted = mounted
        self.nodes: dict[str, Node] = {}
        self.made: set[str] = set()  # what the daemon made, and did not remove
        self.theirs: set[str] = set()  # what others made
        for path in ("/", "/srv", "/mnt", "/etc", "/var", "/var/lib", "/run", "/dev", "/proc", "/sys"):
            self.nodes[path] = Node.DIRECTORY

    def add(self, path: str, node: Node = Node.DIRECTORY, *, theirs: bool = True) -> None:
        """Put something there, with all its parents. ``theirs``: the daemon can know that it is not its own."""
        parent = posixpath.dirname(path)
        if parent not in self.nodes:
            self.add(parent)
        self.nodes[path] = node
        if theirs:
            self.theirs.add(path)
        self.made.discard(path)

    def remove(self, path: str) -> None:
        """Remove whatever is there, and below."""
        for other in [p for p in self.nodes if p == path or p.startswith(path + "/")]:
            del self.nodes[other]
            self.made.discard(other)
            self.theirs.discard(other)

    def rename(self, old: str, new: str) -> None:
        """A directory and what is below. An empty staging path that went along is theirs to remove."""
        for path in [p for p in self.nodes if p == old or p.startswith(old + "/")]:
            to = new + path.removeprefix(old)
            self.nodes[to] = self.nodes.pop(path)
            self.made.discard(path)
            if path in self.theirs:
                self.theirs.remove(path)
                self.theirs.add(to)

    def occupied(self, path: str) -> bool:
        """Whether a directory has entries."""
        return any(other != path and posixpath.dirname(other) == path for other in self.nodes)

    def _check_parents(self, path: str) -> None:
        parents = []
        parent = posixpath.dirname(path)
        while parent != "/":
            parents.append(parent)
            parent = posixpath.dirname(parent)
        for parent in reversed(parents):
            match self.nodes.get(parent):
                case None:
                    raise StagingPathError(f"{parent} does not exist")
                case Node.SYMLINK:
                    raise StagingPathError(f"{parent} is a symbolic link")
                case Node.DIRECTORY:
                    pass
                case _:
                    raise StagingPathError(f"{parent} is not a directory")

    def inspect(self, path: str) -> PathKind:
        self._check_parents(path)
        match self._mounted(path):
            case VolumeType.BLOCK:
                return PathKind.OTHER
            case VolumeType.FILESYSTEM:
                return PathKind.DIRECTORY
        match self.nodes.get(path):
            case None:
                return PathKind.ABSENT
            case Node.SYMLINK:
                raise StagingPathError(f"{path} is a symbolic link")
            case Node.DIRECTORY:
                return PathKind.DIRECTORY if self.occupied(path) else PathKind.EMPTY_DIRECTORY
            case Node.EMPTY_FILE:
                return PathKind.EMPTY_FILE
            case _:
                return PathKind.OTHER

    def create(self, path: str, kind: VolumeType) -> None:
        self._check_parents(path)
        if path in self.nodes:
            raise StagingPathError(f"{path} was created by somebody else meanwhile")
        self.made.add(path)
        self.nodes[path] = Node.DIRECTORY if kind is VolumeType.FILESYSTEM else Node.EMPTY_FILE

    def unlink(self, path: str, kind: VolumeType) -> None:
        node = self.nodes.get(path)
        if node is None:
            return
        if self._mounted(path) is not None:
            raise os_error(errno.EBUSY, path)
        if kind is VolumeType.FILESYSTEM:
            if node is not Node.DIRECTORY:
                raise os_error(errno.ENOTDIR, path)
            if self.occupied(path):
                raise os_error(errno.ENOTEMPTY, path)
        elif node is not Node.EMPTY_FILE:
            raise os_error(errno.ENOTEMPTY if node is Node.FILE else errno.EINVAL, path)
        del self.nodes[path]
        self.made.discard(path)
        self.theirs.discard(path)
