"""Tests on a real kernel: a Debian guest in QEMU, a real NVMe/TCP target, the daemon installed from its package."""
