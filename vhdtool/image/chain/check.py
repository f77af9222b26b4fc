"""Check of an image together with its parents."""

import os
from dataclasses import dataclass, field
from typing import Any

from vhdtool.errors import NotAVhd, VhdtoolError
from vhdtool.image.chain.locate_parent import ParentMismatch, find_parent
from vhdtool.image.chain.open import MAX_DEPTH
from vhdtool.image.check.advice import HEADER_CODES, advice
from vhdtool.image.check.image import Mode, check
from vhdtool.image.journal.transaction import restored_storage
from vhdtool.image.journal.undo import ForeignJournal
from vhdtool.image.metadata.findings import (
    VERDICTS,
    CheckReport,
    Finding,
    Judged,
    exit_code,
)
from vhdtool.image.metadata.read import Metadata, read_metadata
from vhdtool.leases.claim import user_of
from vhdtool.storage import FileStorage, Storage
from vhdtool.vhd.footer import DIFFERENCING
from vhdtool.vhd.header import NO_UUID
from vhdtool.vhd.units import vhd_time

Known = dict[tuple[int, int], CheckReport]
"""(device, inode) -> the report on a closed image that was checked already."""


@dataclass(slots=True)
class ChainReport(Judged):
    """The report of the image and of each parent, and the findings about the links between them."""

    reports: list[CheckReport]
    links: list[Finding] = field(default_factory=list)

    @property
    def findings(self) -> list[Finding]:
        """All findings: about the links, the image and its parents."""
        return [*self.links, *(one for report in self.reports for one in report.findings)]

    def advice(self) -> list[str]:
        """Advice for the findings of each image; none for an image that is in use."""
        lines = []
        for index, report in enumerate(self.reports):
            links = self.links if index == 0 else []
            for_image = advice(report.name, [*links, *report.findings])
            if for_image and report.mode != "live":
                # In an image in use the findings may be unfinished writes of its user.
                user = user_of(report.name)
                lines += [f"{user}; check it again when it is free"] if user else for_image
        return lines

    def verdict_of(self, report: CheckReport) -> str:
        """The verdict on one image; findings about links count for the first image."""
        links = self.links if report is self.reports[0] else []
        return VERDICTS[exit_code([*links, *report.findings])]

    def as_dict(self) -> dict[str, Any]:
        """The report of the image, links included; `parents` has the other reports."""
        first = self.reports[0].as_dict()
        first["findings"] = [f.as_dict() for f in self.links] + first["findings"]
        first["exit_code"] = self.exit_code
        first["verdict"] = self.verdict
        first["advice"] = self.advice()
        first["parents"] = [report.as_dict() for report in self.reports[1:]]
        return first


def check_chain(
    path: str | os.PathLike[str],
    mode: Mode = "strict",
    bitmaps: bool = True,
    parents: bool = True,
    known: Known | None = None,
) -> ChainReport:
    """Check the image at `path` in `mode`, and its parents as closed images.

    A closed image in `known` is not checked again; the report of each other one is added. Raises
    NotAVhd, or StorageError, when `path` itself cannot be checked.
    """
    current = os.fspath(path)
    result = ChainReport([])
    known = {} if known is None else known
    seen: set[tuple[int, int]] = set()
    while True:
        with FileStorage(current) as storage:
            status = os.fstat(storage.fileno())
            key = status.st_dev, status.st_ino
            seen.add(key)
            view = _restored(current, storage, result)
            one = known.get(key) if mode == "strict" else None
            if one is None:
                one = _checked(view, mode, bitmaps)
            if mode == "strict":
                known[key] = one
            result.reports.append(one)
            meta = _metadata(view)
            if not parents or meta is None or meta.footer.disk_type != DIFFERENCING:
                return _check_depth(result)
            parent = _parent(current, view, meta, result, seen)
        if parent is None:
            return _check_depth(result)
        current, mode = parent, "strict"


def _checked(storage: Storage, mode: Mode, bitmaps: bool) -> CheckReport:
    """The check of one image, which also says whether a lost header can be rebuilt."""
    report = check(storage, mode, bitmaps)
    if any(one.code in HEADER_CODES for one in report.findings):
        # Imported late: few images need it.
        from vhdtool.image.check.lost_header import rebuild_header

        try:
            rebuilt = rebuild_header(storage)
        except VhdtoolError:
            return report
        text = f"the rest of the image proves its header: {rebuilt}"
        report.findings.append(Finding("header-proved", "info", text, offset=rebuilt.offset))
    return report


def _restored(path: str, storage: FileStorage, result: ChainReport) -> Storage:
    """The image without an interrupted change, about which a finding is added."""
    try:
        restored = restored_storage(storage)
    except ForeignJournal as error:
        result.links.append(Finding("journal-foreign", "unclean", str(error)))
        return storage
    if restored is not storage:
        text = f"{path}: a change was interrupted; `vhdtool repair` undoes it, nothing is lost"
        result.links.append(Finding("journal-pending", "unclean", text))
    return restored


def _metadata(storage: Storage) -> Metadata | None:
    try:
        return read_metadata(storage)
    except VhdtoolError:
        # The report on this image has the findings.
        return None


def _parent(
    child: str,
    storage: Storage,
    meta: Metadata,
    result: ChainReport,
    seen: set[tuple[int, int]],
) -> str | None:
    """The path of the parent; None, with a finding if that is a fault, where the chain ends."""
    assert meta.header is not None
    try:
        path = find_parent(child, storage, meta.header)
    except VhdtoolError as error:
        code = "parent-mismatch" if isinstance(error, ParentMismatch) else "parent-missing"
        result.links.append(Finding(code, "corrupt", str(error)))
        return None
    status = os.stat(path)
    if (status.st_dev, status.st_ino) in seen:
        text = f"{path}: the chain of parents returns to this file"
        result.links.append(Finding("parent-loop", "corrupt", text))
        return None
    if vhd_time(status.st_mtime) != meta.header.parent_timestamp:
        text = f"{path}: changed at another time than {child} records; that is no fault"
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


def _check_depth(result: ChainReport) -> ChainReport:
    depth = len(result.reports)
    if depth > MAX_DEPTH:
        text = f"a chain of {depth} images: storage managers allow {MAX_DEPTH}; coalesce it"
        result.links.append(Finding("chain-too-deep", "unclean", text))
    return result
