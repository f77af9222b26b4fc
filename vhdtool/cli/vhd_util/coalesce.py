"""`vhd-util coalesce`."""

import errno

from vhdtool.cli.notes import note_coalesced
from vhdtool.cli.vhd_util.conventions import Failed, Options, errno_of, needed, open_image, say
from vhdtool.errors import VhdtoolError
from vhdtool.storage.image_lock import LockMode


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
