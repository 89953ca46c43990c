"""Takes the real agent from the host and becomes it, so that an edit of the agent does not need a new image."""

import os

port = os.open("/dev/virtio-ports/agent", os.O_RDWR | os.O_CLOEXEC)
os.write(port, b"stub\n")
received = b""
while b"\n" not in received:
    received += os.read(port, 4096)
length, _, source = received.partition(b"\n")
while len(source) < int(length):
    source += os.read(port, 65536)
exec(compile(source, "/usr/local/lib/vm/agent.py", "exec"), {"__name__": "__main__", "PORT": port})
