"""Host daemon that owns the life of NVMe over Fabrics volumes."""

__version__ = "0.1.0"
