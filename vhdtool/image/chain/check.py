"""Checking an image together with its parents."""

import os
from dataclasses import dataclass, field
from typing import Any

from vhdtool.errors import NotAVhd, VhdtoolError
from vhdtool.image.chain.locate_parent import ParentMismatch, find_parent
from vhdtool.image.chain.open import MAX_DEPTH
from vhdtool.image.check.advice import advice
from vhdtool.image.check.image import Mode, check
from vhdtool.image.journal.transaction import restored_storage
from vhdtool.image.journal.undo import ForeignJournal
from vhdtool.image.metadata.findings import VERDICTS, CheckReport, Finding, exit_code
from vhdtool.image.metadata.read import Metadata, read_metadata
from vhdtool.leases.claim import user_of
from vhdtool.storage import FileStorage, Storage
from vhdtool.vhd.footer import DIFFERENCING
from vhdtool.vhd.header import NO_UUID
from vhdtool.vhd.units import vhd_time


@dataclass(slots=True)
class ChainReport:
    """Reports of the image and each parent VHD, and what is wrong between them."""

    reports: list[CheckReport]
    links: list[Finding] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return exit_code([*self.links, *(f for r in self.reports for f in r.findings)])

    def advice(self) -> list[str]:
        """What to do about the findings, for each image; none while it is in use."""
        lines = []
        for index, report in enumerate(self.reports):
            links = self.links if index == 0 else []
            helps = advice(report.name, [*links, *report.findings])
            if helps and report.mode != "live":
                # What its user has not finished yet is no damage, and nobody's to mend.
                user = user_of(report.name)
                lines += [f"{user}; check it again when it is free"] if user else helps
        return lines

    def verdict(self, report: CheckReport) -> str:
        """What is to be said of one image: of the first, with what its parents should be."""
        links = self.links if report is self.reports[0] else []
        return VERDICTS[exit_code([*links, *report.findings])]

    def as_dict(self) -> dict[str, Any]:
        """The image's own report; its findings include the links', `parents` has the others."""
        first = self.reports[0].as_dict()
        first["findings"] = [f.as_dict() for f in self.links] + first["findings"]
        first["exit_code"] = self.exit_code
        first["verdict"] = VERDICTS[self.exit_code]
        first["advice"] = self.advice()
        first["parents"] = [report.as_dict() for report in self.reports[1:]]
        return first


def check_chain(
    path: str | os.PathLike[str],
    mode: Mode = "strict",
    bitmaps: bool = True,
    parents: bool = True,
) -> ChainReport:
    """Checks the image at `path`, and its parents as closed images.

    Raises NotAVhd, or StorageError, when `path` itself cannot be checked.
    """
    current = os.fspath(path)
    result = ChainReport([])
    seen: set[tuple[int, int]] = set()
    while True:
        with FileStorage(current) as storage:
            status = os.fstat(storage.fileno())
            seen.add((status.st_dev, status.st_ino))
            seen_as = _journalled(current, storage, result)
            result.reports.append(check(seen_as, "strict" if len(seen) > 1 else mode, bitmaps))
            meta = _metadata(seen_as)
            if not parents or meta is None or meta.footer.disk_type != DIFFERENCING:
                return _depth(result)
            below = _below(current, seen_as, meta, result, seen)
        if below is None:
            return _depth(result)
        current = below


def _journalled(path: str, storage: FileStorage, result: ChainReport) -> Storage:
    """The image as its journal will restore it, where a change was interrupted."""
    try:
        restored = restored_storage(storage)
    except ForeignJournal as error:
        result.links.append(Finding("journal-foreign", "unclean", str(error)))
        return storage
    if restored is not storage:
        text = f"{path}: a change was interrupted; `vhdtool repair` takes it back, nothing is lost"
        result.links.append(Finding("journal-pending", "unclean", text))
    return restored


def _metadata(storage: Storage) -> Metadata | None:
    try:
        return read_metadata(storage)
    except VhdtoolError:
        # The report of this image says already what is wrong with it.
        return None


def _below(
    child: str,
    storage: Storage,
    meta: Metadata,
    result: ChainReport,
    seen: set[tuple[int, int]],
) -> str | None:
    """The parent's path, or None where the chain ends (for a reason that is then a finding)."""
    assert meta.header is not None
    try:
        path = find_parent(child, storage, meta.header)
    except VhdtoolError as error:
        code = "parent-mismatch" if isinstance(error, ParentMismatch) else "parent-missing"
        result.links.append(Finding(code, "corrupt", str(error)))
        return None
    status = os.stat(path)
    if (status.st_dev, status.st_ino) in seen:
        text = f"{path}: the chain of parents comes back to this file"
        result.links.append(Finding("parent-loop", "corrupt", text))
        return None
    if vhd_time(status.st_mtime) != meta.header.parent_timestamp:
        text = f"{path}: changed at another time than {child} remembers; that is no fault"
        result.links.append(Finding("parent-time", "info", text))
    if meta.header.parent_uuid == NO_UUID:
        return None
    try:
        with FileStorage(path) as parent:
            read_metadata(parent)
    except NotAVhd as error:
        result.links.append(Finding("parent-missing", "corrupt", str(error)))
        return None
    except VhdtoolError:
        pass
    return path


def _depth(result: ChainReport) -> ChainReport:
    depth = len(result.reports)
    if depth > MAX_DEPTH:
        text = f"a chain of {depth} images: storage managers stop at {MAX_DEPTH}; coalesce it"
        result.links.append(Finding("chain-too-deep", "unclean", text))
    return result
