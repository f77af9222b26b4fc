"""`vhd-util query`: one line for each option, in blktap's order."""

import errno

from vhdtool.cli.vhd_util.conventions import Options, errno_of, explain, open_image, require
from vhdtool.errors import VhdtoolError
from vhdtool.image.chain.locate_parent import find_parent, locator_paths
from vhdtool.image.chain.open import open_chain
from vhdtool.image.edit.batmap_fields import read_batmap_fields
from vhdtool.image.metadata.bounds import end_of_data
from vhdtool.image.metadata.read import Metadata
from vhdtool.storage import FileStorage
from vhdtool.storage.paths import persistent_path
from vhdtool.vhd.footer import DIFFERENCING
from vhdtool.vhd.units import SECTOR, UNUSED


def used_bytes(meta: Metadata) -> int:
    """Bytes that the image uses of its file or device, including the footer."""
    if meta.header is None:
        return meta.ends.file_size
    return end_of_data(meta.footer, meta.header, meta.batmap, meta.bat) * SECTOR + SECTOR


def query(options: Options) -> int:
    require(options, "n")
    name = options["n"]
    storage, meta = open_image(name)
    code = 0
    with storage:
        if "v" in options:
            print(meta.size >> 20)
        if "s" in options:
            print(used_bytes(meta))
        if "p" in options:
            code = code or _parent(name, storage, meta, "u" not in options)
        if "f" in options:
            print(f"hidden: {meta.footer.hidden}")
        if "m" in options:
            print(f"marker: {read_batmap_fields(meta).marker}")
        if "d" in options:
            code = code or _depth(name)
        if "a" in options:
            if meta.header is None:
                print(f"error reading bat: {-errno.EINVAL}")
                code = code or errno.EINVAL
            else:
                print(sum(1 for entry in meta.bat if entry != UNUSED))
        if "S" in options:
            print(len(meta.bat) << 1)
    return code


def _parent(name: str, storage: FileStorage, meta: Metadata, resolved: bool) -> int:
    if meta.footer.disk_type != DIFFERENCING or meta.header is None:
        print(f"{name} has no parent")
        return 0
    try:
        if resolved:
            print(persistent_path(find_parent(name, storage, meta.header)))
            return 0
        paths = locator_paths(storage, meta.header)
        print(paths[0][1] if paths else meta.header.parent_name_text)
    except VhdtoolError as error:
        explain(error)
        print("query failed")
        return errno_of(error)
    return 0


def _depth(name: str) -> int:
    try:
        with open_chain(name, metadata_only=True) as reader:
            print(f"chain depth: {len(reader.layers)}")
    except VhdtoolError as error:
        explain(error)
        print(f"error checking chain depth: {-errno_of(error)}")
        return errno_of(error)
    return 0
