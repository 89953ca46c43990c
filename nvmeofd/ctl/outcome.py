"""How a command ends: exit codes, and for each error what to do next. Manual and tests are held against this."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

OURS = "org.nvmeofd1.Error."
STANDARD = "org.freedesktop.DBus.Error."


class Exit(IntEnum):
    """Exit codes. They are part of the interface: none changes its meaning."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    DENIED = 4
    NOT_FOUND = 5
    IN_USE = 6
    PLACE = 7
    CONNECTION = 8
    CONTENT = 9
    TOOL = 10
    TIMEOUT = 11
    CANCELLED = 12
    TRY_LATER = 13
    INTERRUPTED = 130  # 128 + SIGINT, as shells have it
    BROKEN_PIPE = 141  # 128 + SIGPIPE


class Refusal(NamedTuple):
    """Exit code of an error, and what to do next.

    ``hint`` may contain ``{verb}``; ``{path}``, the staging path that the command was about, quoted for a shell (or
    PATH); and ``{status}``, the command that shows the subsystem, or all of them.
    """

    code: Exit
    hint: str


LOG = "journalctl -u nvmeofd"

# By the last part of the name, org.nvmeofd1.Error. being the rest.
REFUSALS: dict[str, Refusal] = {
    "InvalidArgument": Refusal(Exit.USAGE, "nvmeofctl {verb} --help has the form of every argument."),
    "InUse": Refusal(
        Exit.IN_USE,
        "Nothing was disconnected. See who uses it with {status}; once they are gone, try again.",
    ),
    "Shared": Refusal(
        Exit.IN_USE,
        "Disconnect with the tool that connected it, which the message names; {status} shows the controllers.",
    ),
    "AlreadyStaged": Refusal(
        Exit.PLACE,
        "See what is staged where with nvmeofctl list; nvmeofctl unstage {path} makes room.",
    ),
    "NotStaged": Refusal(
        Exit.PLACE,
        "Mounts of others are theirs to undo. Look with findmnt {path}; if it is yours: umount {path}.",
    ),
    "PathNotEmpty": Refusal(Exit.PLACE, "Look with ls -A {path}, and empty it or choose another path."),
    "ConnectFailed": Refusal(
        Exit.CONNECTION,
        "Check that the target listens there (nvme discover -t tcp -a HOST -s 4420) and lets in this host, whose NQN "
        "nvmeofctl show --property=HostNQN tells.",
    ),
    "AuthenticationFailed": Refusal(
        Exit.CONNECTION,
        "Compare the secret with the one that the target has for this host, whose NQN "
        "nvmeofctl show --property=HostNQN tells.",
    ),
    "NamespaceNotFound": Refusal(
        Exit.CONNECTION,
        "Compare with the namespaces that the message lists; the target has to export it to this host, whose NQN "
        "nvmeofctl show --property=HostNQN tells.",
    ),
    "NoFilesystem": Refusal(
        Exit.CONTENT,
        "If the volume is new and to be formatted, give the same command with --format=if-empty.",
    ),
    "WrongFilesystem": Refusal(
        Exit.CONTENT, "Leave --fstype out to mount what is there. nvmeofd never formats over it."
    ),
    "NotBlank": Refusal(
        Exit.CONTENT,
        "nvmeofd formats blank devices only. Leave --format out to mount what is there; to look at it, stage it with "
        "--type=block and use wipefs --no-act.",
    ),
    "FormatFailed": Refusal(Exit.TOOL, f"Check --mkfs-options; {LOG} has what mkfs said."),
    "CheckFailed": Refusal(
        Exit.TOOL,
        "Repair it by hand: stage it with --type=block, which mounts nothing, and run fsck on the device.",
    ),
    "MountFailed": Refusal(Exit.TOOL, "Check --mount-options; journalctl -k has what the kernel said."),
    "UnmountFailed": Refusal(
        Exit.TOOL,
        "See which processes use it with fuser -vm {path}, and other mounts with {status}; end them and try again.",
    ),
    "DisconnectFailed": Refusal(Exit.TOOL, f"See the controllers with {{status}}; {LOG} has what the kernel said."),
    "Timeout": Refusal(
        Exit.TIMEOUT,
        "See what still runs with nvmeofctl jobs, and the paths with {status}. If it only takes longer, give a larger "
        "--timeout.",
    ),
    "Cancelled": Refusal(Exit.CANCELLED, "What it had done was undone; {status} shows what is there."),
    "Busy": Refusal(Exit.TRY_LATER, "See what goes on with nvmeofctl jobs, and try again when it is done."),
    "ShuttingDown": Refusal(Exit.TRY_LATER, "Try again when nvmeofd is back: systemctl status nvmeofd."),
    "Failed": Refusal(Exit.FAILED, f"{LOG} has the details."),
}

_STOPPED = Refusal(
    Exit.UNREACHABLE,
    "Start it with systemctl start nvmeofd; systemctl status nvmeofd tells why it does not run.",
)
_NOT_STARTED = Refusal(
    Exit.UNREACHABLE,
    "systemctl status nvmeofd tells why; once that is mended, start it with systemctl start nvmeofd.",
)
_OTHER_VERSION = Refusal(
    Exit.FAILED,
    "nvmeofctl and nvmeofd do not fit together. After an upgrade restart it with systemctl restart nvmeofd; "
    "mounts and connections stay.",
)
_DENIED = Refusal(
    Exit.DENIED,
    "Run it as root, such as with sudo. Who else may call is for the administrator to say, see nvmeofd(8).",
)

# By the last part of the name, org.freedesktop.DBus.Error. being the rest.
STANDARD_REFUSALS: dict[str, Refusal] = {
    "AccessDenied": _DENIED,
    "AuthFailed": _DENIED,
    "InteractiveAuthorizationRequired": _DENIED,
    "UnknownObject": Refusal(
        Exit.NOT_FOUND, "See what there is with nvmeofctl status, nvmeofctl list, nvmeofctl jobs."
    ),
    "LimitsExceeded": Refusal(Exit.TRY_LATER, "Too many calls wait for an answer. Try again when some are done."),
    "NoReply": Refusal(
        Exit.UNREACHABLE,
        "nvmeofd ended before it answered. Its next start finishes or undoes what was begun: look with {status}, and "
        "at systemctl status nvmeofd.",
    ),
    "NameHasNoOwner": _STOPPED,
    "ServiceUnknown": _STOPPED,
    "Disconnected": _STOPPED,
    "TimedOut": Refusal(
        Exit.UNREACHABLE,
        "systemctl status nvmeofd tells how it is; systemctl restart nvmeofd starts it anew; mounts and "
        "connections stay.",
    ),
    "InvalidArgs": Refusal(Exit.FAILED, f"Give fewer or shorter arguments. If they are usual: {_OTHER_VERSION.hint}"),
    "UnknownInterface": _OTHER_VERSION,
    "UnknownMethod": _OTHER_VERSION,
    "UnknownProperty": _OTHER_VERSION,
}

NO_BUS = Refusal(Exit.UNREACHABLE, "There is no answer from the system bus: systemctl status dbus.")
NOT_INSTALLED = Refusal(Exit.UNREACHABLE, "The bus does not know nvmeofd: install the package nvmeofd.")
NOT_FOUND = STANDARD_REFUSALS["UnknownObject"]

MEANINGS: dict[Exit, str] = {
    Exit.OK: "Done, or there was nothing to do.",
    Exit.FAILED: "Any other failure.",
    Exit.USAGE: "A wrong argument; nothing was changed.",
    Exit.UNREACHABLE: "No answer from nvmeofd: it is not installed, does not run, or ended meanwhile.",
    Exit.DENIED: "Not allowed.",
    Exit.NOT_FOUND: "No subsystem, volume or job of that name.",
    Exit.IN_USE: "The subsystem is in use, or belongs to another tool.",
    Exit.PLACE: "The staging path holds something else.",
    Exit.CONNECTION: "The subsystem could not be connected, or lacks the namespace.",
    Exit.CONTENT: "The content of the device does not allow what was asked for.",
    Exit.TOOL: "Formatting, checking, mounting, unmounting or disconnecting failed.",
    Exit.TIMEOUT: "The time was over.",
    Exit.CANCELLED: "Somebody cancelled the operation.",
    Exit.TRY_LATER: "Too much to do, or nvmeofd is stopping: try again later.",
    Exit.INTERRUPTED: "Interrupted with Ctrl-C; the operation goes on.",
    Exit.BROKEN_PIPE: "Nobody reads the output any more.",
}


class Failure(Exception):
    """A command that ends with an error. ``name`` is the short name of the error, empty for one of our own."""

    def __init__(self, text: str, refusal: Refusal, *, name: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.name = name
        self.code = refusal.code
        self.hint = refusal.hint


def refusal(name: str) -> Refusal:
    """What the error ``name`` of the bus, of the daemon or of the service manager means."""
    if name.startswith(OURS):
        # A later daemon may have more names: they are answered, too.
        return REFUSALS.get(name.removeprefix(OURS), REFUSALS["Failed"])
    if name.startswith((STANDARD, "org.freedesktop.systemd1.")):
        # The daemon sends no others of these: such as Spawn.ChildExited and, for a masked unit, FileExists come from
        # the bus, which tried to start it.
        return STANDARD_REFUSALS.get(name.removeprefix(STANDARD), _NOT_STARTED)
    return REFUSALS["Failed"]


def failure(name: str, text: str) -> Failure:
    """The error ``name`` with its ``text`` as the end of a command."""
    short = name.removeprefix(OURS).removeprefix(STANDARD)
    found = refusal(name)
    if found is _NOT_STARTED:
        return Failure(f"nvmeofd cannot be started: {text or short}", found, name=short)
    return Failure(text or short, found, name=short)
