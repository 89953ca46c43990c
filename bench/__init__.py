"""Measurements: what the daemon costs. See README.md."""
