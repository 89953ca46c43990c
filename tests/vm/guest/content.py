"""What is on the backing files of namespaces, put there and looked at without the daemon and without a connection."""

from __future__ import annotations

import hashlib
import os
import struct

MIB = 1 << 20
SECTOR = 512


def write_at(path: str, offset: int, data: str) -> None:
    """Write bytes, given as hexadecimal digits; a negative offset counts from the end."""
    with open(path, "r+b") as file:
        file.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
        file.write(bytes.fromhex(data))
        os.fsync(file.fileno())


def fingerprint(path: str) -> str:
    """Changes when anything in the first or last 4 MiB does, or when anything is written elsewhere."""
    status = os.stat(path)
    digest = hashlib.sha256(f"{status.st_size} {status.st_blocks}".encode())
    with open(path, "rb") as file:
        for offset in (0, status.st_size - 4 * MIB):
            file.seek(offset)
            digest.update(file.read(4 * MIB))
    return digest.hexdigest()


def wipe(path: str) -> None:
    """Make it blank again."""
    size = os.stat(path).st_size
    with open(path, "r+b") as file:
        file.truncate(0)
        file.truncate(size)
        os.fsync(file.fileno())


def copy(source: str, destination: str) -> None:
    """Make one namespace a clone of another, with its holes."""
    with open(source, "rb") as read, open(destination, "r+b") as write:
        size = os.fstat(read.fileno()).st_size
        write.truncate(0)
        write.truncate(size)
        start = 0
        while start < size:
            try:
                start = os.lseek(read.fileno(), start, os.SEEK_DATA)
            except OSError:  # ENXIO: holes up to the end
                break
            end = os.lseek(read.fileno(), start, os.SEEK_HOLE)
            while start < end:
                start += os.copy_file_range(read.fileno(), write.fileno(), end - start, start, start)
        os.fsync(write.fileno())


def partition_table(path: str, start: int = 2048) -> None:
    """An MBR with one Linux partition from sector `start` to the end."""
    sectors = os.stat(path).st_size // SECTOR
    entry = struct.pack("<B3sB3sII", 0, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", start, sectors - start)
    table = b"\0" * 440 + struct.pack("<IH", 0x4D455348, 0) + entry + b"\0" * 48 + b"\x55\xaa"
    write_at(path, 0, table.hex())


def luks_header(path: str) -> None:
    """What marks a LUKS device: magic, version and a UUID."""
    header = b"LUKS\xba\xbe" + struct.pack(">H", 1)
    header += b"aes".ljust(32, b"\0") + b"xts-plain64".ljust(32, b"\0") + b"sha256".ljust(32, b"\0")
    header = header.ljust(168, b"\0") + b"7d1f2f0a-4e2b-4a4e-9d53-1d6a5c2b7d10".ljust(40, b"\0")
    write_at(path, 0, header.hex())
