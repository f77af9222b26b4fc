"""`vhd-util create` and `snapshot`."""

import errno

from vhdtool.cli.vhd_util.conventions import (
    CommandFailed,
    Options,
    open_image,
    parse_number,
    require,
    whole_blocks,
)


def create(options: Options) -> int:
    require(options, "ns")
    from vhdtool.image.create.empty import create_dynamic, create_fixed

    size, room = whole_blocks(options["s"]), whole_blocks(options.get("S", ""))
    if room and room < size:
        raise CommandFailed("Error: <-S size> must be greater than <-s size>", errno.EINVAL)
    if "r" in options:
        create_fixed(options["n"], size, overwrite=True)
    else:
        create_dynamic(options["n"], size, overwrite=True, reserve_bytes=room)
    return 0


def snapshot(options: Options) -> int:
    require(options, "np")
    from vhdtool.image.create import differencing
    from vhdtool.image.edit.batmap_fields import read_batmap_fields, set_key

    name, raw = options["n"], "m" in options
    limit = parse_number(options.get("l", ""))
    parent = differencing.parent_facts(options["p"], raw, without_parents=not limit)
    if "e" not in options and not raw:
        parent = differencing.nearest_with_data(parent, without_parents=not limit)
    if limit and parent.depth + 1 > limit:
        text = f"snapshot depth exceeded: current depth: {parent.depth}, limit: {limit}"
        raise CommandFailed(text, errno.ENOSPC)
    _, path = differencing.snapshot(
        options["p"],
        name,
        raw,
        limit=0,
        skip_empty="e" not in options,
        overwrite=True,
        reserve_bytes=whole_blocks(options.get("S", "")),
    )
    if parent.uuid.int:
        storage, meta = open_image(path)
        storage.close()
        key = read_batmap_fields(meta).key
        if key is not None:
            set_key(name, key[1], key[0])
    return 0
