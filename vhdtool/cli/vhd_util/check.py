"""`vhd-util check`: our check, with the exit codes and messages of blktap's tool.

It finds more than blktap's tool does. Harmless faults that are valid for that tool (leaked space, a
BAT larger than the disk) are valid here too.
"""

import errno
import os
import stat
from contextlib import suppress

from vhdtool.cli.findings import finding_lines
from vhdtool.cli.vhd_util.conventions import (
    Options,
    SilentExit,
    WrongArguments,
    errno_of,
    explain,
    require,
)
from vhdtool.cli.vhd_util.metadata_text import dump, print_headers
from vhdtool.errors import VhdtoolError
from vhdtool.image.chain.check import ChainReport, check_chain
from vhdtool.image.chain.layers import Layer
from vhdtool.image.chain.locate_parent import ParentMismatch, ParentMissing, find_parent
from vhdtool.image.check.image import Mode
from vhdtool.image.metadata.findings import CheckReport, Finding
from vhdtool.image.metadata.read import read_metadata
from vhdtool.storage import FileStorage
from vhdtool.vhd.footer import DIFFERENCING
from vhdtool.vhd.units import SECTOR, UNUSED

_HARMLESS = {
    "leaked-block",
    "leaked-tail",
    "orphan-block",
    "block-beyond-size",
    "block-short",
    "chain-too-deep",
    "geometry",
    "size-disagrees",
    "size-odd",
}
_ERRNO_OF_CODE = {"parent-missing": errno.ENOENT}


def check(options: Options) -> int:
    require(options, "n")
    if "B" in options and set("sb") & set(options):
        raise WrongArguments
    name = options["n"]
    try:
        mode: Mode = "unclean" if "i" in options else "strict"
        report = check_chain(name, mode, "B" not in options, parents="p" in options)
        if "p" not in options:
            report.links += _direct_parent(name)
    except VhdtoolError as error:
        explain(error)
        return _unreadable(name, error)
    code = 0
    count = len(report.reports) if "p" in options else 1
    for index, one in enumerate(report.reports[:count]):
        links = _links(report, index, options)
        code = _verdict(one, links)
        if code:
            break
        if "s" not in options:
            print(f"{one.name} is valid")
        for orphan in one.orphans:
            explain(VhdtoolError(f"{one.name}: {orphan}"))
    if code and count > 1 and code != _verdict(report.reports[0], _links(report, 0, options)):
        print(f"error checking parents: {-code}")
    if "s" in options and not code:
        _statistics([one.name for one in report.reports[:count]])
    return code


def _direct_parent(name: str) -> list[Finding]:
    """Findings about the link to the parent, which itself is not checked."""
    try:
        with FileStorage(name) as storage:
            meta = read_metadata(storage)
            if meta.footer.disk_type == DIFFERENCING and meta.header is not None:
                find_parent(name, storage, meta.header)
    except ParentMismatch as error:
        return [Finding("parent-mismatch", "corrupt", str(error))]
    except ParentMissing as error:
        return [Finding("parent-missing", "corrupt", str(error))]
    except VhdtoolError:
        # The report of the image has the finding.
        return []
    return []


def _unreadable(name: str, error: VhdtoolError) -> int:
    number = errno_of(error)
    with suppress(OSError):
        kind = os.stat(name).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
            print(f"{name} is not a regular file or block device")
            raise SilentExit(errno.EINVAL)
    if number == errno.EINVAL:
        print(f"primary footer invalid: {error}")
        dump(name, f"{name} appears invalid; dumping metadata")
    else:
        print(f"cannot stat {name}: {number}")
    raise SilentExit(number)


def _links(report: ChainReport, index: int, options: Options) -> list[Finding]:
    """Findings between an image and its parent; `links` are in the order of the chain."""
    if index != 0:
        return [] if index + 1 < len(report.reports) else _faults(report.links)
    direct = report.links if len(report.reports) == 1 else []
    skipped = {"parent-mismatch"} if "I" in options else set()
    return [one for one in _faults(direct) if one.code not in skipped]


def _faults(findings: list[Finding]) -> list[Finding]:
    return [
        one
        for one in findings
        if one.severity == "corrupt" or (one.severity == "unclean" and one.code not in _HARMLESS)
    ]


def _verdict(report: CheckReport, links: list[Finding]) -> int:
    faults = links + _faults(report.findings)
    if not faults:
        return 0
    for line in finding_lines(faults, {"corrupt": report.name, "unclean": report.name}):
        print(line)
    print(f"{report.name} appears invalid; dumping metadata")
    try:
        with FileStorage(report.name) as storage:
            print_headers(storage, read_metadata(storage), str)
    except VhdtoolError as error:
        explain(error)
    return _ERRNO_OF_CODE.get(faults[0].code, errno.EINVAL)


def _statistics(names: list[str]) -> None:
    """Print the sectors of each layer, the base first, and those that no lower layer has."""
    below, previous = 0, 0
    for depth, name in enumerate(reversed(names)):
        with FileStorage(name) as storage:
            meta = read_metadata(storage)
            if meta.layout is None:
                return
            allocated = sum(entry != UNUSED for entry in meta.bat) * meta.layout.sectors
            bits = 0
            for start, length, offset in Layer(storage, meta).ranges(0, meta.size):
                if offset is not None:
                    bits |= ((1 << length // SECTOR) - 1) << start // SECTOR
        text = f"{name.rsplit('/', 1)[-1]}: secs allocated: 0x{allocated:x} secs written: "
        text += f"0x{bits.bit_count():x} ({_percent(bits.bit_count(), allocated)})"
        if depth:
            fresh, alone = (bits & ~previous).bit_count(), (bits & ~below).bit_count()
            text += f" secs not in parent: 0x{fresh:x} ({_percent(fresh, bits.bit_count())})"
            text += f" secs not in ancestors: 0x{alone:x} ({_percent(alone, bits.bit_count())})"
        print(text)
        previous, below = bits, below | bits


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole if whole else 0:.2f}%"
