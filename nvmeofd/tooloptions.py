"""Options that a request may pass on to mkfs and mount: what is known to stay on the device, and nothing else.

For mkfs there are lists of what is accepted, because one wrong option makes it write to another device or file. For
mount there is a list of what is refused, because filesystems have too many options to list, and the ones that matter
are those of mount(8) itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nvmeofd.errors import InvalidArgument

MAX_LENGTH = 256


@dataclass(frozen=True, slots=True)
class _Mkfs:
    """Options of one mkfs: those followed by a value and those without, and what a value must not contain."""

    valued: frozenset[str]
    bare: frozenset[str]
    refused_values: re.Pattern[str]


# mke2fs(8). Not: -U (the daemon's), -F (force), -n (dry run), -S (keeps what is there), -d, -l, -z (files).
_MKE2FS = _Mkfs(
    frozenset({"-b", "-C", "-E", "-g", "-G", "-i", "-I", "-J", "-L", "-m", "-N", "-o", "-O", "-r", "-T", "-e"}),
    frozenset({"-j", "-q", "-v"}),
    re.compile(r"(.*,)?(device|offset)=.*"),
)
# mkfs.xfs(8). Not: -f (force), -N (dry run), -p and -c (files), -r (realtime device).
_MKFS_XFS = _Mkfs(
    frozenset({"-b", "-d", "-i", "-l", "-L", "-m", "-n", "-s"}),
    frozenset({"-K", "-q"}),
    re.compile(r"(.*,)?((logdev|rtdev|name|file|uuid)(=.*)?|internal=0)(,.*)?"),
)
# mkfs.btrfs(8). Not: -f (force), -U (the daemon's), -r and --rootdir (files), -b (less than the device).
_MKFS_BTRFS = _Mkfs(
    frozenset(
        {"-A", "-d", "-L", "-m", "-n", "-s", "-O", "-R"}
        | {"--checksum", "--csum", "--data", "--features", "--label", "--metadata", "--nodesize", "--sectorsize"}
        | {"--runtime-features"}
    ),
    frozenset({"-K", "--nodiscard", "-M", "--mixed", "-q", "--quiet", "-v", "--verbose"}),
    re.compile(r"(?!)"),
)
_MKFS = {"ext2": _MKE2FS, "ext3": _MKE2FS, "ext4": _MKE2FS, "xfs": _MKFS_XFS, "btrfs": _MKFS_BTRFS}


def mkfs_options(fstype: str, values: tuple[str, ...]) -> tuple[str, ...]:
    """Check options for the mkfs of a filesystem type and return them. Raises InvalidArgument."""
    _check_form("mkfs-options", values)
    known = _MKFS.get(fstype)
    if known is None:
        if values:
            raise InvalidArgument(f"option mkfs-options: none are known for {fstype}")
        return values
    flag = ""
    for value in values:
        if flag:
            _check_value(known, flag, value)
            flag = ""
        elif value in known.valued:
            flag = value
        elif value not in known.bare:
            flag_part, attached = _split(known, value)
            if not flag_part:
                raise InvalidArgument(
                    f"option mkfs-options: {value!r} is not accepted for {fstype}, accepted are "
                    + " ".join(sorted(known.valued | known.bare))
                )
            _check_value(known, flag_part, attached)
    if flag:
        raise InvalidArgument(f"option mkfs-options: {flag} lacks its value")
    return values


def _split(known: _Mkfs, value: str) -> tuple[str, str]:
    """Take ``-Llabel`` and ``--label=label`` apart; ("", "") for anything that is not of this form."""
    if value.startswith("--"):
        flag, equals, attached = value.partition("=")
        return (flag, attached) if equals and flag in known.valued else ("", "")
    return (value[:2], value[2:]) if value[:2] in known.valued and len(value) > 2 else ("", "")


def _check_value(known: _Mkfs, flag: str, value: str) -> None:
    if "/" in value:
        raise InvalidArgument(f"option mkfs-options: {flag} {value!r} names a path, which is not accepted")
    if known.refused_values.fullmatch(value):
        raise InvalidArgument(f"option mkfs-options: {flag} {value!r} is not accepted: it could leave the device")


# These change what mount(8) does, where, or who may undo it, and would undermine what the daemon knows of the mount.
_MOUNT_REFUSED = re.compile(
    r"(r?bind|move|remount|r?(shared|slave|private|unbindable)|make-.*|ro?=.*|rw=.*|loop(=.*)?|offset=.*|sizelimit=.*|"
    r"encryption=.*|u?helper=.*|[xX]-.*|verity\..*|users?(=.*)?|owner|group|no?auto|nofail|"
    r"(device|logdev|rtdev|journal_path|journal_dev)=.*)"
)


def mount_options(values: tuple[str, ...]) -> tuple[str, ...]:
    """Check options for mount(8) and return them. Raises InvalidArgument."""
    _check_form("mount-options", values)
    for value in values:
        # each of these would make the option eat its neighbours, _netdev among them, or be taken for two
        if value.startswith("-") or re.search(r'[,\\" ]', value):
            raise InvalidArgument(f"option mount-options: {value!r} is not one mount option")
        if value == "ro":
            raise InvalidArgument("option mount-options: use the option read-only instead of 'ro'")
        if _MOUNT_REFUSED.fullmatch(value):
            raise InvalidArgument(f"option mount-options: {value!r} is not accepted here")
    return values


def _check_form(key: str, values: tuple[str, ...]) -> None:
    for value in values:
        if not value or len(value) > MAX_LENGTH or not value.isprintable():
            raise InvalidArgument(f"option {key}: {value[:64]!r} is empty, too long or not printable")
