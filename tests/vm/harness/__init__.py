"""Builds, boots, snapshots and drives the guests that the real-kernel tests run in."""

from .errors import CommandFailed, GuestCallError, GuestDied, GuestError, GuestTimeout, MissingTool
from .guest import Guest, Result
from .image import Image, build_image
from .machine import Machine
from .recipe import SUITES, Suite

__all__ = [
    "SUITES",
    "CommandFailed",
    "Guest",
    "GuestCallError",
    "GuestDied",
    "GuestError",
    "GuestTimeout",
    "Image",
    "Machine",
    "MissingTool",
    "Result",
    "Suite",
    "build_image",
]
