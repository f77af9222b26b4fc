"""VHD images, a tapdisk shim, and a lab that judges whether a disk survives live migration."""

__version__ = "0.1.0"
