"""Chooses KVM or software emulation by trying: /dev/kvm may open, and even start a guest, without running it right."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from .host import cache_dir, digest, locked, qemu_version, say, tool

TCG = "tcg"
# What Debian needs and little more. `max` costs a third: the guest then uses wide vectors, five-level page tables and
# protections that hardware has for nothing, and each of them is emulated. With svm the
# guest would load kvm.
TCG_MODEL = "qemu64,-svm,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16"
PROBE_SECONDS = 20
PROBE_MARK = "Kernel panic - not syncing: VFS: Unable to mount root"


def accelerator(kernel: Path) -> str:
    """`kvm` if a kernel really runs under it, else software emulation. NVMEOFD_VM_ACCEL overrides."""
    forced = os.environ.get("NVMEOFD_VM_ACCEL")
    if forced:
        return forced
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return TCG
    with locked(cache_dir() / "accel.lock"):  # two sessions that tried at once could come to different answers
        return _tried(kernel)


def _tried(kernel: Path) -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    remembered = cache_dir() / "accel"
    key = digest([boot, qemu_version(), TCG])
    if remembered.exists():
        known, _, answer = remembered.read_text().strip().partition(" ")
        if known == key:
            return answer
    answer = "kvm" if _kvm_works(kernel) else TCG
    say("KVM works" if answer == "kvm" else "KVM is there but does not run a kernel: using software emulation")
    remembered.write_text(f"{key} {answer}\n")
    return answer


def cpu_model(accel: str) -> str:
    return "host" if accel.startswith("kvm") else TCG_MODEL


def processors(accel: str) -> int:
    """How many a guest has. Emulated, a second one makes it no faster.

    And it crashes now and then, at boot above all: the kernel patches its own code on one processor, and QEMU goes on
    with what it had translated for the other ("Oops: int3").
    """
    return 2 if accel.startswith("kvm") else 1


def _kvm_works(kernel: Path) -> bool:
    """Boot a kernel without a disk: it gets as far as missing its root within a second, or the machine is no good."""
    with tempfile.TemporaryDirectory() as folder:
        console = Path(folder) / "console"
        argv = [
            tool("qemu-system-x86_64"), "-accel", "kvm", "-machine", "q35", "-cpu", cpu_model("kvm"), "-m", "256",
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", f"file:{console}",
            "-kernel", str(kernel), "-append", "console=ttyS0 panic=-1 nokaslr",
        ]  # fmt: skip
        try:
            subprocess.run(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                timeout=PROBE_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
        return console.exists() and PROBE_MARK in console.read_text(errors="replace")
