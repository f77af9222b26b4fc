"""`vhd-util set`, `modify` and `resize`."""

import errno

from vhdtool.cli.notes import STAYS, note_orphans
from vhdtool.cli.vhd_util.conventions import (
    CommandFailed,
    Options,
    WrongArguments,
    errno_of,
    explain,
    open_image,
    parse_number,
    require,
    whole_blocks,
)
from vhdtool.cli.vhd_util.repair import close_image
from vhdtool.errors import VhdtoolError
from vhdtool.storage.image_lock import ImageInUse, LockMode
from vhdtool.vhd.units import DEFAULT_BLOCK, size_text


def set_field(options: Options) -> int:
    require(options, "nfv")
    from vhdtool.image.edit.batmap_fields import set_marker
    from vhdtool.image.edit.modify import modify_footer

    field, value = options["f"], parse_number(options["v"])
    if field not in ("hidden", "marker"):
        print(f"invalid field {field}")
        raise WrongArguments
    if value > 255:
        print(f"invalid value {value}")
        raise WrongArguments
    open_image(options["n"])[0].close()
    if field == "marker":
        set_marker(options["n"], value, LockMode.BENEATH)
    else:
        close_image(options["n"])
        modify_footer(options["n"], hidden=value, mode=LockMode.BENEATH)
    return 0


def modify(options: Options) -> int:
    require(options, "n")
    from vhdtool.image.edit.modify import discard_blocks, set_file_size
    from vhdtool.vhd.footer import DIFFERENCING

    name = options["n"]
    storage, meta = open_image(name)
    storage.close()
    if "z" in options:
        try:
            close_image(name)
            discard_blocks(name)
        except VhdtoolError as error:
            explain(error)
            raise CommandFailed(
                f"failed to zero VHD: {-errno_of(error)}", errno_of(error)
            ) from None
    if "s" in options:
        size = parse_number(options["s"])
        try:
            set_file_size(name, size)
        except VhdtoolError as error:
            explain(error)
            text = f"failed to set physical size to {size}: {-errno_of(error)}"
            raise CommandFailed(text, errno_of(error)) from None
    if "p" in options:
        try:
            _relink(name, options["p"], "m" in options, meta.footer.disk_type == DIFFERENCING)
        except VhdtoolError as error:
            explain(error)
            text = f"failed to set parent to '{options['p']}': {-errno_of(error)}"
            raise CommandFailed(text, errno_of(error)) from None
    return 0


def _relink(name: str, parent: str, raw: bool, child: bool) -> None:
    """Set the parent. SM does this to images in use, which it pauses and unpauses afterwards."""
    from vhdtool.image.edit.modify import modify_parent
    from vhdtool.image.journal.transaction import change_journal_path, recover
    from vhdtool.leases.claim import claimed

    # SM links images to another ancestor by this, so UUIDs are not compared.
    try:
        if child:
            close_image(name)
        modify_parent(name, parent, raw, other_disk=True)
    except ImageInUse:
        with claimed(name, LockMode.RELINK) as storage:
            recover(storage, change_journal_path(name))
        modify_parent(name, parent, raw, other_disk=True, mode=LockMode.RELINK)


def resize(options: Options) -> int:
    require(options, "ns")
    journal, fast = options.get("j"), "f" in options
    if (journal is None) != fast:
        raise WrongArguments
    name, size = options["n"], whole_blocks(options["s"])
    storage, meta = open_image(name)
    storage.close()
    if not meta.footer.is_tapdisk:
        raise CommandFailed(f"{name} not created by xen; resize not supported", errno.EINVAL)
    if fast:
        if size < meta.size:
            text = f"{name}: size ({size}) < curr size ({meta.size})"
            raise CommandFailed(text, errno.EINVAL)
        if size > len(meta.bat) * DEFAULT_BLOCK:
            explain(VhdtoolError(f"{name}: its BAT is too small for {size_text(size)}; see -j"))
            return errno.EINVAL
    from vhdtool.image.edit.resize import resize as resize_image

    note_orphans(name, STAYS)
    try:
        if fast:
            resize_image(name, size, mode=LockMode.BENEATH)
        else:
            resize_image(name, size, journal)
    except VhdtoolError as error:
        explain(error)
        raise CommandFailed(f"resize failed: {-errno_of(error)}", errno_of(error)) from None
    return 0
