"""The log of changes names every range that reads differently afterwards, trimmed ones too."""

from pathlib import Path

from tests.support.shims import empty_image
from vhdtool.image.disk.dynamic import DynamicDisk
from vhdtool.tapdisk.tapctl.change_log import HEADER, TRACKED, ChangeLog


def test_writes_zeros_and_trims_are_noted_and_reads_are_not(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(bytes(HEADER + 512))
    disk = ChangeLog(DynamicDisk(empty_image()), str(log))
    disk.read(0, TRACKED)
    disk.prefetch(0, TRACKED)
    disk.write(TRACKED - 512, bytes([1]) * 1024)
    disk.write_zeroes(3 * TRACKED, 512)
    disk.trim(5 * TRACKED, 2 * TRACKED)
    disk.flush()
    assert log.read_bytes()[HEADER : HEADER + 2] == bytes([0b01101011, 0])
    assert disk.read(TRACKED - 512, 1024) == bytes([1]) * 1024
    disk.trim(TRACKED - 512, 512)
    assert disk.read(TRACKED - 512, 1024) == bytes(512) + bytes([1]) * 512
    disk.finish()
    disk.abandon()
