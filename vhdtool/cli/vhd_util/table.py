"""The commands of `vhd-util` with their options, from which usage lines and completion are made."""

import re
from dataclasses import dataclass

PATHS = frozenset({"NAME", "PARENT", "JOURNAL", "KEYFILE"})
"""Values of options that are paths of files."""
_LINE = re.compile(r"(\[?)-(\w)(?: ([A-Z]+))?\]?(?:\s+(.+))?")


@dataclass(frozen=True, slots=True)
class Option:
    """An option of one letter. `value` names its argument and is "" for a flag."""

    letter: str
    value: str
    text: str
    required: bool

    @property
    def usage(self) -> str:
        word = f"-{self.letter}{' ' if self.value else ''}{self.value}"
        if self.text:
            word += f" ({self.text})"
        return word if self.required else f"[{word}]"


@dataclass(frozen=True, slots=True)
class Command:
    """`target` is module:function; the exit code of -h is that of blktap's tool."""

    target: str
    summary: str
    options: tuple[Option, ...]
    files: str = ""
    exit_code_of_help: int = 22

    @property
    def letters(self) -> str:
        """The options as getopt takes them."""
        return "".join(f"{one.letter}{':' if one.value else ''}" for one in self.options)

    @property
    def usage(self) -> str:
        return " ".join([*(one.usage for one in self.options), *([self.files] * bool(self.files))])

    def path_letters(self) -> str:
        return "".join(one.letter for one in self.options if one.value in PATHS)


def _command(
    target: str, summary: str, options: str, files: str = "", exit_code_of_help: int = 22
) -> Command:
    """A command; each line of `options` is `-x VALUE  text`, in brackets where it may be absent."""
    parsed = []
    for line in options.strip().splitlines():
        match = _LINE.fullmatch(line.strip())
        assert match is not None, line
        bracket, letter, value, text = match.groups()
        parsed.append(Option(letter, value or "", text or "", not bracket))
    return Command(target, summary, tuple(parsed), files, exit_code_of_help)


COMMANDS = {
    "create": _command(
        "create:create",
        "Create a dynamic or fixed image.",
        """
        -n NAME
        -s MB
        [-r]          a fixed image
        [-S MB]       size that the tables are made for
        """,
    ),
    "snapshot": _command(
        "create:snapshot",
        "Create a child image over a parent.",
        """
        -n NAME
        -p PARENT
        [-l LIMIT]    longest chain allowed
        [-m]          raw parent
        [-S MB]       size that the tables are made for
        [-e]          link to PARENT even if it is empty
        """,
        exit_code_of_help=0,
    ),
    "query": _command(
        "query:query",
        "Print fields of an image, a line each.",
        """
        -n NAME
        [-v]          virtual size in MB
        [-s]          bytes used
        [-p]          parent
        [-u]          parent as written
        [-f]          hidden
        [-m]          marker
        [-d]          depth of the chain
        [-a]          allocated blocks
        [-S]          MB that a fast resize can reach
        """,
        exit_code_of_help=0,
    ),
    "read": _command(
        "read:read",
        "Print headers, tables and data of an image.",
        """
        -n NAME
        [-p]          headers
        [-t SECTOR]   its offset in the file
        [-b BLOCK]    its BAT entry
        [-B]          BAT as bits
        [-m BLOCK]    its bitmap
        [-i SECTOR]   its bit in the bitmap
        [-e SECTOR]   extents from there
        [-a]          batmap
        [-j BLOCK]    its bit in the batmap
        [-d BLOCK]    its data
        [-r SECTOR]   guest data from there
        [-R BYTE]     guest data from there
        [-c COUNT]    how many blocks, sectors or bytes
        [-x]          numbers in hexadecimal
        [-C]          read through the page cache
        """,
    ),
    "set": _command(
        "modify:set_field",
        "Set a field of an image.",
        """
        -n NAME
        -f FIELD      hidden or marker
        -v VALUE
        """,
    ),
    "repair": _command(
        "repair:repair",
        "Write the footer at the end of an image that lacks it.",
        """
        -n NAME
        [-b]          from the footer's copy
        """,
    ),
    "resize": _command(
        "modify:resize",
        "Change the virtual size of an image; needs one of -j and -f.",
        """
        -n NAME
        -s MB
        [-j JOURNAL]  of the change
        [-f]          fast, within the tables
        """,
    ),
    "fill": _command(
        "coalesce:fill",
        "Allocate every block.",
        """
        -n NAME
        [-f FIRST]    not supported
        [-t COUNT]    not supported
        [-b]          not supported
        [-B]          not supported
        """,
    ),
    "coalesce": _command(
        "coalesce:coalesce",
        "Write an image's data into its parent.",
        """
        -n NAME
        [-s]          skip zeros
        [-p]          progress
        """,
    ),
    "modify": _command(
        "modify:modify",
        "Change parent or file size of an image, or discard its data.",
        """
        -n NAME
        [-s BYTES]    size of the file
        [-p PARENT]
        [-m]          raw parent
        [-z]          discard all data
        """,
    ),
    "scan": _command(
        "scan:scan",
        "Print a line for each image.",
        """
        [-m PATTERN]
        [-f]          fast
        [-c]          continue after errors
        [-l GROUP]    volumes of this LVM group
        [-p]          as trees
        [-a]          parents too
        [-v]          whole paths
        [-M]          markers
        """,
        files="FILES",
        exit_code_of_help=0,
    ),
    "check": _command(
        "check:check",
        "Check an image.",
        """
        -n NAME
        [-i]          a missing footer is no fault
        [-I]          accept any parent
        [-t]          accept any time stamp
        [-p]          parents too
        [-b]          bitmaps
        [-B]          no bitmaps
        [-s]          statistics
        """,
        exit_code_of_help=0,
    ),
    "revert": _command(
        "repair:revert",
        "Undo an interrupted change by its journal.",
        """
        -n NAME
        -j JOURNAL
        """,
    ),
    "key": _command(
        "key_hash:key",
        "Print (-p), set (-s), compare (-c) or compute (-C) the hash of an encryption key.",
        """
        [-n NAME]     except with -C
        [-p]          print nonce and hash
        [-s]          set the hash, of -k or -H
        [-c]          compare with the hash of -k
        [-C]          compute the hash of -k
        [-k KEYFILE]
        [-H HASH]
        [-N NONCE]
        """,
        exit_code_of_help=0,
    ),
}
