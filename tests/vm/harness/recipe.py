"""What a guest image consists of. Everything here goes into the image's key, so an edit rebuilds it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

IMAGE_FILES = Path(__file__).parent.parent / "image"
DEFAULT_MIRROR = "http://deb.debian.org/debian"

PACKAGES = (
    "linux-image-amd64",  # the cloud variant has no nvmet
    "systemd",
    "systemd-sysv",
    "dbus",
    "polkitd",
    "udev",
    "kmod",
    "mount",
    "util-linux",
    "procps",
    "iproute2",
    "dmsetup",
    "nvme-cli",
    "e2fsprogs",
    "xfsprogs",
    "btrfs-progs",
    "python3",
    "python3-dbus-next",
    "python3-pyudev",
    "python3-sdnotify",
)

# What has no use in the guest but costs time at boot, or wakes up in the middle of a measurement.
MASKED_UNITS = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "systemd-tmpfiles-clean.timer",
    "getty@tty1.service",
    "getty-static.service",
    "serial-getty@ttyS0.service",
    "systemd-networkd-wait-online.service",
    "systemd-pcrphase.service",
    "systemd-update-utmp.service",
    "systemd-journal-flush.service",
    "systemd-hwdb-update.service",
    "xfs_scrub_all.timer",
    "nvmefc-boot-connections.service",
    "nvmf-autoconnect.service",
)

# The others find nothing in the guest, and each of them is run with each reload of systemd, so with each package that
# is installed or removed.
KEPT_GENERATORS = ("systemd-fstab-generator",)

# Started by the tests that are about them.
DISABLED_UNITS = ("stafd.service", "stacd.service")

# Files that dpkg need not unpack: a third of the image, and much of the time depmod and mke2fs take.
EXCLUDED_PATHS = (
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
    "/usr/share/info/*",
    *(
        f"{top}/lib/modules/*/kernel/{part}/*"
        for top in ("", "/usr")
        for part in (
            "sound",
            "drivers/gpu",
            "drivers/media",
            "drivers/net/ethernet",
            "drivers/net/wireless",
            "drivers/infiniband",
            "drivers/iio",
            "drivers/staging",
            "drivers/scsi",
        )
    ),
)

# Enough to mount the root; everything else is loaded from it.
INITRD_MODULES = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic")
ROOT_SIZE = "8G"  # sparse: the backing files of namespaces live on it


@dataclass(frozen=True)
class Suite:
    """One Debian release that guests are made of."""

    name: str
    number: int
    packages: tuple[str, ...] = PACKAGES


SUITES = {
    "debian13": Suite("trixie", 13, (*PACKAGES, "nvme-stas")),
    "debian12": Suite("bookworm", 12),
}


def host_mirror() -> str:
    """The mirror this machine installs from, so that a machine behind its own mirror needs no setting."""
    try:
        listed = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.split()
    except FileNotFoundError:
        return DEFAULT_MIRROR
    for uri in listed:
        if uri.rstrip("/").endswith("/debian"):
            return uri.rstrip("/")
    return DEFAULT_MIRROR


def host_apt_options() -> str:
    """How this machine's apt reaches its mirror (proxy, certificates, clock checks). No part of the key."""
    wanted = ("Acquire::http", "Acquire::https", "Acquire::Check-", "Acquire::Retries", "Acquire::ForceIPv")
    try:
        dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        dump = ""
    kept = [line for line in dump.splitlines() if line.startswith(wanted)]
    return "\n".join([*kept, 'Acquire::Languages "none";', 'APT::Install-Recommends "false";', ""])


def image_files() -> list[tuple[str, bytes]]:
    """The files copied into the image as they are, by path, in a fixed order."""
    return [
        (str(path.relative_to(IMAGE_FILES)), path.read_bytes())
        for path in sorted(IMAGE_FILES.rglob("*"))
        if path.is_file()
    ]


def key_parts(suite: Suite) -> list[str | bytes]:
    """Everything that decides what an image contains, save the state of the Debian archive."""
    parts: list[str | bytes] = [suite.name, ROOT_SIZE, Path(__file__).with_name("image.py").read_bytes()]
    parts += [*suite.packages, "|", *MASKED_UNITS, "|", *KEPT_GENERATORS, "|", *DISABLED_UNITS, "|"]
    parts += [*EXCLUDED_PATHS, "|", *INITRD_MODULES]
    for name, content in image_files():
        parts += [name, content]
    return parts
