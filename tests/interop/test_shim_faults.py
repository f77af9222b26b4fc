"""Real processes in trouble: a stopped holder of the lease, a vanished record, a huge disk."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.shim_process import ShimProcess, run
from vhdtool.image.create.empty import create_dynamic

GIB = 1 << 30


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[ShimProcess, ShimProcess]]:
    """Two shims, the first one active on the image that both are told."""
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        folder.mkdir()
    with ShimProcess(folders[0]) as first, ShimProcess(folders[1]) as second:
        second.image = first.image
        yield first.activate(), second


def qemu_io(shim: ShimProcess, *commands: str, check: bool = True) -> str:
    words = [part for command in commands for part in ("-c", command)]
    return run("qemu-io", "-f", "raw", "-t", "none", shim.uri, *words, check=check)


def refused(shim: ShimProcess, op: str, **more: object) -> str:
    with pytest.raises(AssertionError) as caught:
        shim.do(op, **more)
    return str(caught.value)


def test_a_stopped_holder_keeps_its_image_until_it_is_ended(
    pair: tuple[ShimProcess, ShimProcess],
) -> None:
    """It may write as soon as it wakes, so even --force takes nothing from it."""
    first, second = pair
    qemu_io(first, "write -P 1 0 2M")
    first.process.send_signal(signal.SIGSTOP)
    second.do("attach", path=str(second.image), size=second.size)
    before = second.image.read_bytes()
    started = time.monotonic()
    said = refused(second, "activate")
    assert f"(pid {first.process.pid})" in said
    assert "held by test" in said
    assert time.monotonic() - started < 10
    for epoch in (1, 99):
        said = refused(second, "activate", force=epoch)
        assert "takes only what is free: end that process" in said
    assert second.image.read_bytes() == before
    first.process.send_signal(signal.SIGCONT)
    qemu_io(first, "write -P 9 20M 64k")
    first.process.kill()
    first.process.wait()
    second.do("activate")
    out = qemu_io(second, "read -P 1 0 2M", "read -P 9 20M 64k", "write -P 2 4M 2M")
    assert "failed" not in out
    assert second.terminate() == 0, second.log()
    assert second.verdict() == 0


def test_a_record_that_is_removed_fences(pair: tuple[ShimProcess, ShimProcess]) -> None:
    first, second = pair
    qemu_io(first, "write -P 1 0 2M")
    Path(f"{first.image}.lease").unlink()
    out = qemu_io(first, "write -P 9 20M 64k", check=False)
    assert "Input/output error" in out
    assert first.do("status")["state"] == "fenced"
    second.do("attach", path=str(second.image), size=second.size)
    # What it had asked of the storage may still be under way, so the lock stays with it.
    assert "is in use by" in refused(second, "activate")
    first.do("deactivate")
    # Nobody holds the new record, but the image was not closed: a person has to look.
    assert "no footer at the end" in refused(second, "activate")
    assert "Traceback" not in first.log() + second.log()


def test_2040_gib_take_little_memory_and_no_idle_time(tmp_path: Path) -> None:
    create_dynamic(tmp_path / "disk.vhd", 2040 * GIB)
    with ShimProcess(tmp_path, size=2040 * GIB) as shim:
        shim.activate()
        qemu_io(shim, *(f"write -P 1 {n * 37 % 2040}G 64k" for n in range(200)))
        status = Path(f"/proc/{shim.process.pid}/status").read_text()
        (rss,) = (int(line.split()[1]) for line in status.splitlines() if line[:6] == "VmRSS:")
        assert rss < 60 << 10, f"{rss} KiB"
        before = cpu_ticks(shim.process.pid)
        time.sleep(1)  # Nothing happens then, which is what is measured.
        assert cpu_ticks(shim.process.pid) - before <= 1
        assert shim.terminate() == 0


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])
