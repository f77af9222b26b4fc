"""The commands of `vhd-util` that write: create, snapshot, set, repair, resize and the others.

What a storage manager does to the nodes of a chain takes LockMode.BENEATH, whether the leaf is in
use or not: a guest may be started meanwhile. docs/vhd.md says which commands, and why that is safe.
"""

import errno
import os
from uuid import uuid4

from vhdtool.cli.orphans import IN_PLACE, note_coalesced, note_orphans
from vhdtool.cli.vhdutil.query import open_image
from vhdtool.cli.vhdutil.words import Failed, Options, Wrong, errno_of, needed, number, say
from vhdtool.errors import UsageError, VhdtoolError
from vhdtool.storage.locking.image_lock import ImageInUse, LockMode
from vhdtool.vhd.units import DEFAULT_BLOCK

_MIB = 20


def create(options: Options) -> int:
    needed(options, "ns")
    from vhdtool.image.create.empty import create_dynamic, create_fixed

    size, room = _whole_blocks(options["s"]), _whole_blocks(options.get("S", ""))
    if room and room < size:
        raise Failed("Error: <-S size> must be greater than <-s size>", errno.EINVAL)
    if "r" in options:
        create_fixed(options["n"], size, overwrite=True)
    else:
        create_dynamic(options["n"], size, overwrite=True, reserve_bytes=room)
    return 0


def _whole_blocks(megabytes: str) -> int:
    """Bytes of a size in MiB, rounded up to blocks as blktap does."""
    return -(-(number(megabytes) << _MIB) // DEFAULT_BLOCK) * DEFAULT_BLOCK


def snapshot(options: Options) -> int:
    needed(options, "np")
    from vhdtool.image.create import differencing as child
    from vhdtool.image.edit.batmap_fields import read_marks, set_key

    name, raw = options["n"], "m" in options
    limit = number(options.get("l", ""))
    parent = child.parent_facts(options["p"], raw, alone=not limit)
    if "e" not in options and not raw:
        parent = child.first_with_data(parent, alone=not limit)
    if limit and parent.depth + 1 > limit:
        text = f"snapshot depth exceeded: current depth: {parent.depth}, limit: {limit}"
        raise Failed(text, errno.ENOSPC)
    _, path = child.snapshot(
        options["p"],
        name,
        raw,
        limit=0,
        skip_empty="e" not in options,
        overwrite=True,
        reserve_bytes=_whole_blocks(options.get("S", "")),
    )
    if parent.uuid.int:
        storage, meta = open_image(path)
        storage.close()
        key = read_marks(meta).key
        if key is not None:
            set_key(name, key[1], key[0])
    return 0


def set_field(options: Options) -> int:
    needed(options, "nfv")
    from vhdtool.image.edit.batmap_fields import set_marker
    from vhdtool.image.edit.modify import modify_footer

    field, value = options["f"], number(options["v"])
    if field not in ("hidden", "marker"):
        print(f"invalid field {field}")
        raise Wrong
    if value > 255:
        print(f"invalid value {value}")
        raise Wrong
    open_image(options["n"])[0].close()
    if field == "marker":
        set_marker(options["n"], value, LockMode.BENEATH)
    else:
        _close(options["n"])
        modify_footer(options["n"], hidden=value, mode=LockMode.BENEATH)
    return 0


def repair(options: Options) -> int:
    needed(options, "n")
    from vhdtool.image.edit.modify import modify_footer

    open_image(options["n"])[0].close()
    _close(options["n"], always=True)
    storage, meta = open_image(options["n"])
    storage.close()
    if meta.footer.uuid.int == 0:
        modify_footer(options["n"], uuid=uuid4())
    return 0


def _close(name: str, always: bool = False) -> None:
    """Puts the footer at the end of an image that lacks it, as blktap's tool does in passing.

    A change that was interrupted is taken back: a storage manager knows no other command for that.
    """
    from vhdtool.image.edit.repair import plan, require_repairable
    from vhdtool.image.journal.transaction import guarded, journal_beside, recover
    from vhdtool.image.metadata.read import read_ends
    from vhdtool.leases.claim import claimed

    with claimed(name, LockMode.BENEATH) as storage:
        recover(storage, journal_beside(name))
        end = read_ends(storage).end
        if end is not None and end.valid and not always:
            return
        result = plan(storage)
        require_repairable(result)
        if result.changes:
            guarded(storage, journal_beside(name), result.changes)


def resize(options: Options) -> int:
    needed(options, "ns")
    journal, fast = options.get("j"), "f" in options
    if (journal is None) != fast:
        raise Wrong
    name, size = options["n"], _whole_blocks(options["s"])
    storage, meta = open_image(name)
    storage.close()
    if not meta.footer.is_tapdisk:
        raise Failed(f"{name} not created by xen; resize not supported", errno.EINVAL)
    if fast:
        if size < meta.size:
            text = f"{name}: size ({size}) < curr size ({meta.size})"
            raise Failed(text, errno.EINVAL)
        if size > len(meta.bat) * DEFAULT_BLOCK:
            say(VhdtoolError(f"{name}: its tables have no room for {size} bytes; see -j"))
            return errno.EINVAL
    from vhdtool.image.edit.resize import resize as work

    note_orphans(name, IN_PLACE)
    try:
        if fast:
            work(name, size, mode=LockMode.BENEATH)
        else:
            work(name, size, journal)
    except VhdtoolError as error:
        say(error)
        raise Failed(f"resize failed: {-errno_of(error)}", errno_of(error)) from None
    return 0


def fill(options: Options) -> int:
    needed(options, "n")
    if set(options) - {"n"}:
        raise Failed("-b, -f, -t and -B are not supported: blocks are filled whole", errno.ENOTSUP)
    open_image(options["n"])[0].close()
    from vhdtool.image.edit.coalesce import fill as work

    note_orphans(options["n"], IN_PLACE)
    work(options["n"])
    return 0


def coalesce(options: Options) -> int:
    needed(options, "n")
    from vhdtool.image.edit.coalesce import coalesce as work
    from vhdtool.vhd.footer import DIFFERENCING

    storage, meta = open_image(options["n"])
    storage.close()
    if meta.footer.disk_type != DIFFERENCING:
        print("coalescing of non-differencing disks is not supported")
        raise Failed(f"error coalescing: {-errno.EINVAL}", errno.EINVAL)
    try:
        note_coalesced(options["n"])
        done = work(options["n"], mode=LockMode.BENEATH)
    except VhdtoolError as error:
        say(error)
        raise Failed(f"error coalescing: {-errno_of(error)}", errno_of(error)) from None
    print(f"Coalesced {done.sectors} sectors", end="")
    return 0


def modify(options: Options) -> int:
    needed(options, "n")
    from vhdtool.image.edit import modify as work
    from vhdtool.vhd.footer import DIFFERENCING

    name = options["n"]
    storage, meta = open_image(name)
    storage.close()
    if "z" in options:
        try:
            _close(name)
            work.throw_data_away(name)
        except VhdtoolError as error:
            say(error)
            raise Failed(f"failed to zero VHD: {-errno_of(error)}", errno_of(error)) from None
    if "s" in options:
        size = number(options["s"])
        try:
            work.set_file_size(name, size)
        except VhdtoolError as error:
            say(error)
            text = f"failed to set physical size to {size}: {-errno_of(error)}"
            raise Failed(text, errno_of(error)) from None
    if "p" in options:
        try:
            _relink(name, options["p"], "m" in options, meta.footer.disk_type == DIFFERENCING)
        except VhdtoolError as error:
            say(error)
            text = f"failed to set parent to '{options['p']}': {-errno_of(error)}"
            raise Failed(text, errno_of(error)) from None
    return 0


def _relink(name: str, parent: str, raw: bool, child: bool) -> None:
    """SM does it to images in use, which it pauses and unpauses afterwards."""
    from vhdtool.image.edit.modify import modify_parent
    from vhdtool.image.journal.transaction import journal_beside, recover
    from vhdtool.leases.claim import claimed

    # SM relinks images to another ancestor with it: the uuid is not compared.
    try:
        if child:
            _close(name)
        modify_parent(name, parent, raw, other_disk=True)
    except ImageInUse:
        with claimed(name, LockMode.RELINK) as storage:
            recover(storage, journal_beside(name))
        modify_parent(name, parent, raw, other_disk=True, mode=LockMode.RELINK)


def revert(options: Options) -> int:
    needed(options, "nj")
    from vhdtool.image.journal.undo import drop_journal, undo
    from vhdtool.leases.claim import claimed

    journal = options["j"]
    if not os.path.exists(journal):
        raise Failed(f"opening journal failed: {-errno.ENOENT}", errno.ENOENT)
    with claimed(options["n"]) as storage:
        try:
            undo(storage, journal)
        except UsageError as error:
            # No journal of ours, or a torn one: it is left alone, and so is the image.
            say(error)
            raise Failed(f"opening journal failed: {-errno.EINVAL}", errno.EINVAL) from None
        drop_journal(journal)
    return 0
