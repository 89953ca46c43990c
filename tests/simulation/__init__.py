"""A simulated kernel and clock, and the daemon's core on them."""
