"""`vhd-util repair` and `revert`, and the closing of an image that lacks its footer."""

import errno
import os
from uuid import uuid4

from vhdtool.cli.vhd_util.conventions import CommandFailed, Options, explain, open_image, require
from vhdtool.errors import UsageError
from vhdtool.storage.image_lock import LockMode


def repair(options: Options) -> int:
    require(options, "n")
    from vhdtool.image.edit.modify import modify_footer

    open_image(options["n"])[0].close()
    close_image(options["n"], always=True)
    storage, meta = open_image(options["n"])
    storage.close()
    if meta.footer.uuid.int == 0:
        modify_footer(options["n"], uuid=uuid4())
    return 0


def close_image(name: str, always: bool = False) -> None:
    """Write the footer at the end of an image that lacks it, as blktap's tool does on opening.

    An interrupted change is undone first: a storage manager has no other command for that.
    """
    from vhdtool.image.edit.repair import plan, require_repairable
    from vhdtool.image.journal.transaction import apply_journalled, change_journal_path, recover
    from vhdtool.image.metadata.ends import read_ends
    from vhdtool.leases.claim import claimed

    with claimed(name, LockMode.BENEATH) as storage:
        recover(storage, change_journal_path(name))
        end = read_ends(storage).footer
        if end is not None and end.valid and not always:
            return
        result = plan(storage)
        require_repairable(result)
        if result.changes:
            apply_journalled(storage, change_journal_path(name), result.changes)


def revert(options: Options) -> int:
    require(options, "nj")
    from vhdtool.image.journal.undo import drop_journal, undo
    from vhdtool.leases.claim import claimed

    journal = options["j"]
    if not os.path.exists(journal):
        raise CommandFailed(f"opening journal failed: {-errno.ENOENT}", errno.ENOENT)
    with claimed(options["n"]) as storage:
        try:
            undo(storage, journal)
        except UsageError as error:
            # Not our journal, or a torn one: neither journal nor image is changed.
            explain(error)
            raise CommandFailed(f"opening journal failed: {-errno.EINVAL}", errno.EINVAL) from None
        drop_journal(journal)
    return 0
