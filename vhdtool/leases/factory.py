"""Which backend keeps a disk's lease, as a person writes it behind `--lease`."""

from collections.abc import Callable
from pathlib import Path

from vhdtool.errors import UsageError
from vhdtool.leases.external import kept_lease
from vhdtool.leases.lease import Lease, ReaderLease, open_lease
from vhdtool.leases.owner import Owner

OpenLease = Callable[[Path], Lease]
"""The lease of the image whose epoch record is at that path."""
KINDS = "sanlock:LOCKSPACE:NAME:FILE[:OFFSET] or scsi:iscsi://HOST[:PORT]/TARGET/LUN"


def lease_opener(text: str | None, owner: Owner, guard: bool, read_only: bool = False) -> OpenLease:
    """What opens leases as `text` says: None is the epoch record alone. Raises UsageError."""
    if read_only:
        if text is not None:
            raise UsageError("--lease and --read-only: a reader takes no lease")
        return lambda path: ReaderLease()
    if text is None:
        return lambda path: open_lease(path, owner, guard)
    if not guard:
        raise UsageError("--lease and --faithful: without the guard there is no lease")
    kind, _, rest = text.partition(":")
    if kind == "sanlock":
        from vhdtool.leases.sanlock import Resource, SanlockKeeper

        resource = Resource.parse(rest)
        return lambda path: kept_lease(path, owner, SanlockKeeper(resource))
    if kind == "scsi":
        from vhdtool.leases.scsi_reservation import ReservationKeeper
        from vhdtool.storage.scsi import Lun

        lun = Lun.parse(rest)
        return lambda path: kept_lease(path, owner, ReservationKeeper(lun, owner))
    raise UsageError(f"--lease {text}: there is no such lease; write {KINDS}")
