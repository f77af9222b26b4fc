"""Commands on a chain whose leaf is served, interrupted: the guest loses nothing by it."""

from pathlib import Path

import pytest
from holders import served
from image_tools import clean, content, write

from vhdtool.cli.main import run
from vhdtool.cli.vhdutil.main import run as vhd_util
from vhdtool.image import journal
from vhdtool.image.child import snapshot
from vhdtool.image.create import create_dynamic
from vhdtool.tapdisk.disk import TapDisk

BLOCK = 512 << 10
BLOCKS = 64
LIVE = b"live" * 128


class Killed(BaseException):
    """The command is killed here: nothing of it runs any more."""


@pytest.fixture
def leaf(tmp_path: Path) -> Path:
    """leaf.vhd over node.vhd over base.vhd."""
    base, node = tmp_path / "base.vhd", tmp_path / "node.vhd"
    create_dynamic(base, BLOCKS * BLOCK, block_bytes=BLOCK)
    write(base, (0, b"base" * 128))
    snapshot(base, node)
    write(node, (BLOCK, b"node" * 128))
    snapshot(node, tmp_path / "leaf.vhd")
    return tmp_path / "leaf.vhd"


def write_everywhere(disk: TapDisk) -> None:
    """The guest writes all blocks, so that the file grows far past what it was."""
    for block in range(BLOCKS):
        disk.write(block * BLOCK, memoryview(LIVE))


def relink(leaf: Path) -> int:
    return vhd_util(["modify", "-n", str(leaf), "-p", str(leaf.with_name("base.vhd"))])


@pytest.mark.parametrize("how", [KeyboardInterrupt, Killed])
def test_a_relink_that_ends_early_cuts_nothing_that_the_guest_wrote_meanwhile(
    leaf: Path, how: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(leaf) as disk:

        def interrupted(*_: object) -> None:
            write_everywhere(disk)
            raise how

        with monkeypatch.context() as patch:
            patch.setattr(journal, "apply", interrupted)
            with pytest.raises(how):
                relink(leaf)
        assert all(disk.read(block * BLOCK, 512) == LIVE for block in range(BLOCKS))
    # The journal of the killed one is still there.
    assert run(["repair", "--yes", str(leaf)]) == 0
    clean(leaf)
    assert all(content(leaf)[block * BLOCK :][:512] == LIVE for block in range(BLOCKS))
