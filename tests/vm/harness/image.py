"""Builds guest images: mmdebstrap makes the tree, mke2fs -d makes it a disk; no loop device and no mount needed."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import recipe
from .host import cache_dir, digest, locked, run, say, timed, tool
from .recipe import Suite

KEEP_UNUSED = 1  # how many images of one suite are kept beside the current one: switching branches is common


@dataclass(frozen=True)
class Image:
    """A built image: one folder with what QEMU needs to boot it."""

    suite: Suite
    key: str
    path: Path

    @property
    def kernel(self) -> Path:
        return self.path / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.path / "initrd"

    @property
    def root(self) -> Path:
        return self.path / "root.img"


def image_for(suite: Suite) -> Image:
    """Where the image of this suite is, or will be once built."""
    key = digest(recipe.key_parts(suite))
    return Image(suite, key, cache_dir() / f"image-{suite.name}-{key}")


def build_image(suite: Suite) -> Image:
    """The image of this suite, built first if no run has done so yet."""
    image = image_for(suite)
    if image.path.is_dir():
        os.utime(image.path)  # pruning goes by last use
        return image
    with locked(cache_dir() / f"image-{suite.name}.lock"):
        if not image.path.is_dir():  # another run may have built it while we waited
            with timed(f"building the Debian {suite.number} image (once; 1 to 3 minutes)"):
                _build(image)
            _prune(suite, keep=image.path)
    return image


def _build(image: Image) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=f".building-{image.suite.name}-", dir=cache_dir()))
    try:
        files = temporary / "files"
        for name, content in recipe.image_files():
            target = files / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        out = temporary / "out"
        out.mkdir()
        apt = temporary / "apt.conf"
        apt.write_text(recipe.host_apt_options())
        argv = [tool("mmdebstrap"), "--variant=minbase", "--architectures=amd64", "--format=null"]
        argv += [f"--include={','.join(image.suite.packages)}", f"--aptopt={apt}"]
        argv += [f"--dpkgopt=path-exclude={path}" for path in recipe.EXCLUDED_PATHS]
        argv += [f"--essential-hook={_script(temporary / 'early', _EARLY, files)}"]
        argv += [f"--customize-hook={_script(temporary / 'late', _LATE, out)}"]
        argv += [image.suite.name, "/dev/null", recipe.host_mirror()]
        env = dict(os.environ, MKE2FS=tool("mke2fs"), DEBUGFS=tool("debugfs"), LC_ALL="C.UTF-8")
        run(argv, log=out / "build.log", env=env)
        os.rename(out, image.path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _script(path: Path, text: str, argument: Path) -> str:
    """A hook for mmdebstrap: it calls it with the root as its last argument."""
    path.write_text(text)
    path.chmod(0o755)
    return f'{shlex.quote(str(path))} {shlex.quote(str(argument))} "$1"'


# Before the kernel is configured, so that its initrd is made small at the first try.
_EARLY = f"""#!/bin/sh
set -eu
cp -r --no-preserve=mode,ownership "$1/." "$2/"
mkdir -p "$2/etc/initramfs-tools/hooks" "$2/etc/initramfs-tools/conf.d"
echo MODULES=list > "$2/etc/initramfs-tools/conf.d/vm"
cat > "$2/etc/initramfs-tools/hooks/vm" <<'EOF'
#!/bin/sh
[ "$1" = prereqs ] && exit 0
. /usr/share/initramfs-tools/hook-functions
for module in {" ".join(recipe.INITRD_MODULES)}; do manual_add_modules $module; done
EOF
chmod 755 "$2/etc/initramfs-tools/hooks/vm"
"""

_LATE = f"""#!/bin/sh
set -eu
for unit in {" ".join(shlex.quote(unit) for unit in recipe.MASKED_UNITS)}; do
    ln -sf /dev/null "$2/etc/systemd/system/$unit"
done
mkdir -p "$2/etc/systemd/system-generators"
for generator in "$2"/usr/lib/systemd/system-generators/*; do
    ln -sf /dev/null "$2/etc/systemd/system-generators/${{generator##*/}}"
done
for generator in {" ".join(shlex.quote(name) for name in recipe.KEPT_GENERATORS)}; do
    rm "$2/etc/systemd/system-generators/$generator"
done
for unit in {" ".join(shlex.quote(unit) for unit in recipe.DISABLED_UNITS)}; do
    rm -f "$2"/etc/systemd/system/*.wants/"$unit"
done
ln -sf /lib/systemd/system/multi-user.target "$2/etc/systemd/system/default.target"
mkdir -p "$2/etc/systemd/system/multi-user.target.wants"
ln -sf /etc/systemd/system/vm-agent.service "$2/etc/systemd/system/multi-user.target.wants/vm-agent.service"
echo 8f14e45fceea467a9a36dedd4bea2543 > "$2/etc/machine-id"
chroot "$2" passwd -d root >/dev/null
rm -rf "$2"/var/lib/apt/lists/* "$2"/var/cache/apt/*.bin "$2"/etc/apt/apt.conf.d/99mmdebstrap
cp "$2"/boot/vmlinuz-* "$1/vmlinuz"
cp "$2"/boot/initrd.img-* "$1/initrd"
rm -rf "$2"/boot/initrd.img-* "$2"/boot/System.map-*
chroot "$2" dpkg-query -W > "$1/packages"
# A bind without the mounts below it: /proc, /sys and /dev are still mounted there and no part of the image.
mkdir "$1/tree"
unshare --mount sh -euc 'mount --bind "$2" "$1/tree"
    "$MKE2FS" -q -t ext4 -O ^has_journal -E lazy_itable_init=0,nodiscard -N 131072 -L root -d "$1/tree" \\
    "$1/root.img" {recipe.ROOT_SIZE}' sh "$1" "$2"
rmdir "$1/tree"
# It keeps services from being started while the image is built, and is taken away only after this hook.
"$DEBUGFS" -w -R "rm /usr/sbin/policy-rc.d" "$1/root.img"
"""


def _prune(suite: Suite, *, keep: Path) -> None:
    """Forget images of this suite that were not used lately, and what was snapshotted from them."""
    others = [path for path in cache_dir().glob(f"image-{suite.name}-*") if path.is_dir() and path != keep]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in others[KEEP_UNUSED:]:
        say(f"removing the unused image {path.name}")
        shutil.rmtree(path, ignore_errors=True)
    for left in cache_dir().glob(f".building-{suite.name}-*"):  # we hold the lock: nobody else is building
        shutil.rmtree(left, ignore_errors=True)
    kept = {path.name.removeprefix("image-") for path in cache_dir().glob("image-*") if path.is_dir()}
    for disk in cache_dir().glob(f"booted-{suite.name}-*.qcow2"):
        if not any(disk.name.startswith(f"booted-{name}-") for name in kept):
            with contextlib.suppress(FileNotFoundError):
                disk.unlink()
