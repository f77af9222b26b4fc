"""Which kind of lease a disk has: the value of `--lease`."""

from collections.abc import Callable
from pathlib import Path

from vhdtool.errors import UsageError
from vhdtool.leases.epoch_record import EpochRecord
from vhdtool.leases.external import ExternalLease
from vhdtool.leases.lease import EpochLease, Lease, ReaderLease, UnguardedLease
from vhdtool.leases.owner import Owner

OpenLease = Callable[[Path], Lease]
"""Opens the lease of the image whose epoch record is at that path."""
KINDS = "sanlock:LOCKSPACE:NAME:FILE[:OFFSET] or scsi:iscsi://HOST[:PORT]/TARGET/LUN"


def lease_opener(
    text: str | None,
    owner: Owner,
    guard: bool,
    read_only: bool = False,
    temporary: bool = False,
) -> OpenLease:
    """Returns what opens leases as `text` says; None: the epoch record. Raises UsageError.

    `temporary`: as EpochRecord has it.
    """

    def record(path: Path) -> EpochRecord:
        return EpochRecord(path, temporary)

    if read_only:
        if text is not None:
            raise UsageError("--lease: with --read-only or --snapshot there is no lease")
        return lambda path: ReaderLease()
    if text is None:
        if guard:
            return lambda path: EpochLease(record(path), owner)
        return lambda path: UnguardedLease(record(path), owner)
    if not guard:
        raise UsageError("--lease and --faithful: without the guard there is no lease")
    kind, _, rest = text.partition(":")
    if kind == "sanlock":
        from vhdtool.leases.sanlock import Resource, SanlockBackend

        resource = Resource.parse(rest)
        return lambda path: ExternalLease(record(path), owner, SanlockBackend(resource))
    if kind == "scsi":
        from vhdtool.leases.scsi_reservation import ReservationBackend
        from vhdtool.storage.scsi import Lun

        lun = Lun.parse(rest)
        return lambda path: ExternalLease(record(path), owner, ReservationBackend(lun, owner))
    raise UsageError(f"--lease {text}: there is no such lease; write {KINDS}")
