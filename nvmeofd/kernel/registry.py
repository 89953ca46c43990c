"""The registry of who owns which controller, shared with libnvme 3, nvme-cli 3 and other orchestrators.

One directory per controller with plain text files, ``/run/nvme/registry/nvme0/owner``. No entry: nobody owns it. A
udev rule of libnvme removes the entry when the controller goes, unless ``seqnum`` (the kernel's uevent counter when
the entry was made) shows that the name already belongs to a newer controller. See libnvme's REGISTRY.md.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil

OWNER = "nvmeofd"

_CONTROLLER = re.compile(r"nvme\d+")


class Registry:
    """Entries below ``run_nvme``/registry."""

    def __init__(self, run_nvme: str, sys: str) -> None:
        self._root = f"{run_nvme}/registry"
        self._seqnum = f"{sys}/kernel/uevent_seqnum"

    def owner(self, controller: str) -> str | None:
        """Who owns it; an empty owner is none, as in libnvme. Raises OSError."""
        try:
            return _read(f"{self._path(controller)}/owner") or None
        except FileNotFoundError:
            return None

    def claim(self, controller: str) -> None:
        """Make an entry for a controller that was just connected.

        An entry that is there belongs to an earlier controller of this name and is replaced. The new one is built
        aside and renamed: nobody sees it without its seqnum and removes it for that. Aside means always the same
        place, so that what a crash left there is found again.

        Raises:
            OSError
        """
        path = self._path(controller)
        os.makedirs(self._root, mode=0o755, exist_ok=True)
        self._clear(controller)
        new = self._aside(controller)
        os.mkdir(new)
        try:
            os.chmod(new, 0o755)  # noqa: S103 - who owns what is for everybody to read
            with contextlib.suppress(OSError):  # without it, the rule looks at /dev/nvme0 alone
                _write(f"{new}/seqnum", _read(self._seqnum))
            _write(f"{new}/owner", OWNER)
            self._discard(controller)
            os.rename(new, path)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise

    def release(self, controller: str) -> None:
        """Remove the entry if it is this daemon's. Raises OSError."""
        self._clear(controller)
        if self.owner(controller) == OWNER:
            self._discard(controller)

    def _discard(self, controller: str) -> None:
        """Remove an entry, for others in one step."""
        trash = self._trash(controller)
        try:
            os.rename(self._path(controller), trash)
        except FileNotFoundError:
            return
        shutil.rmtree(trash)

    def _clear(self, controller: str) -> None:
        """Remove what an earlier life of the daemon left beside the entry when it was killed."""
        for left in (self._aside(controller), self._trash(controller)):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(left)

    def _aside(self, controller: str) -> str:
        return self._beside(controller, "tmp")

    def _trash(self, controller: str) -> str:
        return self._beside(controller, "trash")

    def _beside(self, controller: str, what: str) -> str:
        directory, name = os.path.split(self._path(controller))
        return f"{directory}/.{name}.{what}.{OWNER}"

    def _path(self, controller: str) -> str:
        if not _CONTROLLER.fullmatch(controller):
            raise ValueError(f"not the name of a controller: {controller!r}")
        return f"{self._root}/{controller}"


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(4096).rstrip("\r\n")


def _write(path: str, value: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"{value}\n")
        os.fchmod(file.fileno(), 0o644)
