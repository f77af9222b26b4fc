"""A file system of a test's own: mounted where only the test's processes see it."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.shim_process import run
from tests.support.waiting import wait_for


class Mount:
    """A mount namespace, and a directory in it on which something can be mounted.

    Commands run inside with `words`; from outside its files are at `seen`.
    """

    def __init__(self, where: Path) -> None:
        self.where = where
        self._keeper = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sleep", "1000"]
        )
        outside = os.readlink("/proc/self/ns/mnt")
        wait_for(
            lambda: os.readlink(f"/proc/{self._keeper.pid}/ns/mnt") != outside,
            failure="there was no mount namespace",
            interval=0.001,
        )

    @property
    def seen(self) -> Path:
        return Path(f"/proc/{self._keeper.pid}/root{self.where}")

    def words(self, *command: str) -> list[str]:
        """The command as it is run inside."""
        return ["nsenter", "--target", str(self._keeper.pid), "--mount", *command]

    def run(self, *command: str) -> str:
        return run(*self.words(*command))

    def close(self) -> None:
        """Everything is unmounted when the last process inside has gone."""
        self._keeper.kill()
        self._keeper.wait()


@contextmanager
def mounted(where: Path, *words: str) -> Iterator[Mount]:
    """`mount words... where` in a namespace of its own."""
    where.mkdir()
    mount = Mount(where)
    try:
        mount.run("mount", *words, str(where))
        yield mount
    finally:
        mount.close()
