"""Which backend keeps a disk's lease, as a person writes it behind `--lease`."""

from collections.abc import Callable
from pathlib import Path

from vhdtool.errors import UsageError
from vhdtool.tapdisk.leases.kept import kept_lease
from vhdtool.tapdisk.leases.lease import Lease, Owner, open_lease

OpenLease = Callable[[Path], Lease]
"""The lease of the image whose epoch record is at that path."""
KINDS = "sanlock:LOCKSPACE:NAME:FILE[:OFFSET] or scsi:iscsi://HOST[:PORT]/TARGET/LUN"


def lease_opener(text: str | None, owner: Owner, guard: bool) -> OpenLease:
    """What opens leases as `text` says: None is the epoch record alone. Raises UsageError."""
    if text is None:
        return lambda path: open_lease(path, owner, guard)
    if not guard:
        raise UsageError("--lease and --faithful: without the guard there is no lease")
    kind, _, rest = text.partition(":")
    if kind == "sanlock":
        from vhdtool.tapdisk.leases.sanlock import Resource, SanlockKeeper

        resource = Resource.parse(rest)
        return lambda path: kept_lease(path, owner, SanlockKeeper(resource))
    if kind == "scsi":
        from vhdtool.storage.scsi import Lun
        from vhdtool.tapdisk.leases.reservation import ReservationKeeper

        lun = Lun.parse(rest)
        return lambda path: kept_lease(path, owner, ReservationKeeper(lun, owner))
    raise UsageError(f"--lease {text}: there is no such lease; write {KINDS}")
