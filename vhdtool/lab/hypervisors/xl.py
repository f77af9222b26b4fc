"""xl on a lab host: short commands, and the domains that are there."""

import contextlib

from vhdtool.errors import LabError
from vhdtool.lab.hosts.connection import Host

XL_TIMEOUT = 60.0
PREFIX = "vhdlab-"
"""Begins the name of every domain of the lab."""
INCOMING, MIGRATED = "--incoming", "--migratedaway"
"""What `xl migrate` adds to a domain's name: at the destination until it runs there, and at the
source when it need not run there any more."""


def xl(host: Host, *words: str) -> str:
    """The output of one command of xl. Raises LabError."""
    return output(host, "xl", *words)


def output(host: Host, *words: str) -> str:
    """The output of a command of Xen's tools. Raises LabError."""
    found: str = host.call("output", XL_TIMEOUT, argv=list(words))
    return found


def domains(host: Host) -> dict[int, tuple[str, str]]:
    """{number: (name, state)} of all domains; the state as `xl list` prints it, as "-b----"."""
    fields = [line.rsplit(maxsplit=5) for line in xl(host, "list").splitlines()[1:]]
    return {int(f[1]): (f[0].strip(), f[4]) for f in fields if len(f) == 6}


def destroy(host: Host, names: set[str]) -> None:
    """Destroy those of these domains that are there."""
    for name, _ in domains(host).values():
        if name in names:
            with contextlib.suppress(LabError):
                xl(host, "destroy", name)


def runs(host: Host, number: int | None) -> bool:
    """Whether the domain exists, and is not paused, stopped, crashed or dying."""
    state = domains(host).get(number, ("", "d"))[1] if number is not None else "d"
    return not set("pscd") & set(state)
