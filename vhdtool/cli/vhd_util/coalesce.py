"""`vhd-util coalesce` and `fill`."""

import errno

from vhdtool.cli.notes import STAYS, note_coalesced, note_orphans
from vhdtool.cli.vhd_util.conventions import (
    CommandFailed,
    Options,
    errno_of,
    explain,
    open_image,
    require,
)
from vhdtool.errors import VhdtoolError
from vhdtool.storage.image_lock import LockMode


def coalesce(options: Options) -> int:
    require(options, "n")
    from vhdtool.image.edit.coalesce import coalesce as coalesce_image
    from vhdtool.vhd.footer import DIFFERENCING

    storage, meta = open_image(options["n"])
    storage.close()
    if meta.footer.disk_type != DIFFERENCING:
        print("coalescing of non-differencing disks is not supported")
        raise CommandFailed(f"error coalescing: {-errno.EINVAL}", errno.EINVAL)
    try:
        note_coalesced(options["n"])
        done = coalesce_image(options["n"], mode=LockMode.BENEATH)
    except VhdtoolError as error:
        explain(error)
        raise CommandFailed(f"error coalescing: {-errno_of(error)}", errno_of(error)) from None
    print(f"Coalesced {done.sectors} sectors", end="")
    return 0


def fill(options: Options) -> int:
    require(options, "n")
    if set(options) - {"n"}:
        raise CommandFailed(
            "-b, -f, -t and -B are not supported: blocks are filled whole", errno.ENOTSUP
        )
    open_image(options["n"])[0].close()
    from vhdtool.image.edit.coalesce import fill as fill_image

    note_orphans(options["n"], STAYS)
    fill_image(options["n"])
    return 0
