"""`vhd-util resize`."""

import errno

from vhdtool.cli.notes import STAYS, note_orphans
from vhdtool.cli.vhd_util.conventions import (
    CommandFailed,
    Options,
    WrongArguments,
    errno_of,
    explain,
    open_image,
    require,
    whole_blocks,
)
from vhdtool.errors import VhdtoolError
from vhdtool.storage.image_lock import LockMode
from vhdtool.vhd.units import DEFAULT_BLOCK


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
            explain(VhdtoolError(f"{name}: its BAT is too small for {size} bytes; see -j"))
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
