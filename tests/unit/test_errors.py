"""The errors are those of the D-Bus API, name by name."""

from __future__ import annotations

import inspect

from nvmeofd import errors
from nvmeofd.errors import NvmeofdError, dbus_name

# The API of version 1, and Failed for what must not happen.
NAMES = (
    "InvalidArgument",
    "InUse",
    "Shared",
    "AlreadyStaged",
    "NotStaged",
    "PathNotEmpty",
    "ConnectFailed",
    "AuthenticationFailed",
    "NamespaceNotFound",
    "NoFilesystem",
    "WrongFilesystem",
    "NotBlank",
    "FormatFailed",
    "CheckFailed",
    "MountFailed",
    "UnmountFailed",
    "DisconnectFailed",
    "Timeout",
    "Cancelled",
    "Busy",
    "ShuttingDown",
    "Failed",
)


def classes() -> dict[str, type[NvmeofdError]]:
    found = inspect.getmembers(errors, lambda x: inspect.isclass(x) and issubclass(x, NvmeofdError))
    return {name: cls for name, cls in found if cls is not NvmeofdError}


def test_names() -> None:
    assert sorted(classes()) == sorted(NAMES)


def test_dbus_names() -> None:
    for name, cls in classes().items():
        assert dbus_name(cls("why")) == f"org.nvmeofd1.Error.{name}"


def test_one_level() -> None:
    """No error is caught by accident as another one, and none as a built-in."""
    for cls in classes().values():
        assert cls.__bases__ == (NvmeofdError,)
        assert cls.__doc__
