"""Options of the local hosts, and their fixed names, addresses and directories."""

import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vhdtool.errors import UsageError

HOSTS = {"alpha": "198.18.0.11", "beta": "198.18.0.12"}
"""Names and addresses; 198.18.0.0/15 is reserved for benchmarks of network devices (RFC 2544)."""
BRIDGE, BRIDGE_ADDRESS, PREFIX = "vhdlab0", "198.18.0.1", 24
SHARED_DIR, PRIVATE_DIR, CACHE_DIR = "/srv/vhdlab", "/var/lib/vhdlab", "/var/cache/vhdlab"
"""Paths on a host of the shared, the private and the cache directory."""
FEATURES = 1
"""Rises when hosts made by an older version of this package cannot be reused."""

_SIZE = re.compile(r"[1-9][0-9]*[kmg]")


def default_cache() -> Path:
    """The user's cache directory for this project, outside every checkout."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # A relative one is to be ignored (XDG Base Directory Specification).
    return (base if base.is_absolute() else Path.home() / ".cache") / "vhdlab"


@dataclass(frozen=True)
class HostOptions:
    """The shared directory: a tmpfs of `shared_size`, or `shared_source` on a real file system.

    Raises UsageError for a wrong value.
    """

    shared_size: str = "1500m"
    shared_source: Path | None = None
    cache_source: Path = field(default_factory=default_cache)

    def __post_init__(self) -> None:
        if not _SIZE.fullmatch(self.shared_size):
            raise UsageError(
                f"size of the shared directory {self.shared_size!r}: "
                "give a positive number with k, m or g, as 1500m"
            )
        if self.shared_source is not None and not self.shared_source.is_dir():
            raise UsageError(
                f"{self.shared_source}: is no directory; name one that the hosts share"
            )

    def as_dict(self) -> dict[str, Any]:
        """For JSON; equal for hosts that can be reused."""
        plain = {k: v if v is None else str(v) for k, v in asdict(self).items()}
        return {"features": FEATURES, **plain}


def inside_config(options: HostOptions, files: Path) -> dict[str, Any]:
    """The supervisor's configuration; `files` is the state directory with keys and logs."""
    return {
        **options.as_dict(),
        "hosts": HOSTS,
        "bridge": BRIDGE,
        "bridge_address": BRIDGE_ADDRESS,
        "prefix": PREFIX,
        "shared_dir": SHARED_DIR,
        "private_dir": PRIVATE_DIR,
        "cache_dir": CACHE_DIR,
        "files": str(files),
    }
