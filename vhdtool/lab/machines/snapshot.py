"""Saves the machines when they have booted, and starts them from there: seconds, not minutes."""

import asyncio
import contextlib
import os
import shlex
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from qemu.qmp import QMPClient, QMPError

from vhdtool.errors import LabError
from vhdtool.lab.commands import last_line
from vhdtool.lab.machines.layout import MACHINES

_SECONDS = 120.0


def save(directory: Path, snapshot: Path) -> None:
    """Stop the machines and write the memory of each into `snapshot`. Raises LabError."""
    for machine in MACHINES:
        memory = snapshot / f"{machine.name}.memory"
        _on(directory, machine.name, partial(_save, memory))


def restore(directory: Path, snapshot: Path) -> None:
    """Have the machines, which were started for it, read their memory and run."""
    for machine in MACHINES:
        memory = snapshot / f"{machine.name}.memory"
        _on(directory, machine.name, partial(_restore, memory))


async def _save(memory: Path, client: QMPClient) -> None:
    await client.execute("stop")
    await client.execute("migrate-set-parameters", {"max-bandwidth": 4 << 30})
    await client.execute("migrate", {"uri": f"exec:cat > {shlex.quote(str(memory))}"})
    await _completed(client)
    await client.execute("quit")


async def _restore(memory: Path, client: QMPClient) -> None:
    await client.execute("migrate-incoming", {"uri": f"exec:cat {shlex.quote(str(memory))}"})
    await _completed(client)
    await client.execute("cont")


async def _completed(client: QMPClient) -> None:
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        answer: Any = await client.execute("query-migrate")
        status = answer.get("status")
        if status == "completed":
            return
        if status in ("failed", "cancelled"):
            raise LabError(f"the memory of a machine: {answer.get('error-desc', status)}")
        await asyncio.sleep(0.05)
    raise LabError(f"the memory of a machine is not written or read within {_SECONDS:.0f} s")


def _on(directory: Path, name: str, work: Callable[[QMPClient], Awaitable[None]]) -> None:
    """Run `work` with the monitor of a machine."""

    async def talk() -> None:
        client = QMPClient(name)
        with _short(directory) as folder:
            await client.connect(f"{folder}/{name}.qmp")
        try:
            await work(client)
        finally:
            with contextlib.suppress(QMPError, EOFError, ConnectionError):
                await client.disconnect()

    try:
        asyncio.run(talk())
    except (QMPError, OSError) as error:
        # QEMU says why it ended; the client knows only that it did.
        said = last_line(directory / f"qemu-{name}.log")
        raise LabError(f"{name}: {said or error}") from error


@contextlib.contextmanager
def _short(directory: Path) -> Iterator[str]:
    """A short name of a directory: a socket's path has at most 107 characters."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
