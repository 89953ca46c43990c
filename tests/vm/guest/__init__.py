"""Helper modules that run inside the guest, in its agent. They import on the host too: tests name their functions."""
