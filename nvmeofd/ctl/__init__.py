"""nvmeofctl: the command-line client. It talks D-Bus only, and imports nothing of the daemon's core."""
