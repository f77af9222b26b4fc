"""The path by which a file or volume can be found again after a restart."""

import os
import re

SYSFS = "/sys/block"
MAPPER = "/dev/mapper"
_DM = re.compile(r"/dev/(dm-\d+)")


def lasting_path(path: str | os.PathLike[str]) -> str:
    """The real path; for a device-mapper volume the one with its name, not its number of today.

    A number like /dev/dm-3 goes to another volume as soon as volumes are switched on in another
    order, so that a child must never remember it.
    """
    real = os.path.realpath(path)
    match = _DM.fullmatch(real)
    if match is None:
        return real
    try:
        with open(f"{SYSFS}/{match[1]}/dm/name", encoding="utf-8") as file:
            return f"{MAPPER}/{file.read().strip()}"
    except OSError:
        return real
