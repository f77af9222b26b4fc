"""Rebuilding a lost header from what the rest of the image proves."""

import os

from vhdtool.errors import UnsupportedImage, UsageError
from vhdtool.image.check.advice import HEADER_CODES
from vhdtool.image.check.image import check
from vhdtool.image.check.lost_header import RebuiltHeader, rebuild_header
from vhdtool.image.create.differencing import parent_facts, with_parent
from vhdtool.image.journal.undo import Change
from vhdtool.storage import Storage
from vhdtool.vhd.header import NO_UUID, Header


def plan_header(
    storage: Storage, parent: str | os.PathLike[str] | None = None
) -> tuple[RebuiltHeader, Change]:
    """Find the proved header of an image without a valid one, and the change that writes it.

    `parent`: the parent of a child whose header does not prove it. Writes nothing. Raises
    NotAVhd; UsageError where the header is not damaged, or a parent is given to an image that
    needs none; CorruptImage where no header is proved; UnsupportedImage without a parent.
    """
    if not any(one.code in HEADER_CODES for one in check(storage, bitmaps=False).findings):
        raise UsageError(f"{storage.name}: its header is not damaged; nothing was written")
    fields = None if parent is None else _parent_fields(storage.name, parent)
    rebuilt = rebuild_header(storage, fields)
    if rebuilt.needs_parent and fields is None:
        raise UnsupportedImage(
            f"{storage.name}: is a child, and which parent it had is lost with its header; name "
            "the parent with --parent, if you know it"
        )
    if fields is not None and rebuilt.header.parent_uuid != fields.parent_uuid:
        raise UsageError(f"{storage.name}: its header needs no --parent: {_whose(rebuilt.header)}")
    if fields is not None:
        rebuilt.evidence.append(f"the parent is the given one, {parent}: nothing confirms it")
    text = f"write the header: {rebuilt}"
    return rebuilt, Change(text, rebuilt.offset, rebuilt.header.pack())


def _parent_fields(child: str, parent: str | os.PathLike[str]) -> Header:
    """A header with the fields of a parent; without locators, whose space may be lost too."""
    facts = parent_facts(parent)
    if os.path.realpath(child) in facts.chain:
        raise UsageError(f"{child}: an image cannot be its own parent")
    return with_parent(Header(1), facts, ())


def _whose(header: Header) -> str:
    if header.parent_uuid == NO_UUID:
        return "the image has no parent"
    return f"it still names the parent with the uuid {header.parent_uuid}"
