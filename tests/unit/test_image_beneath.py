"""Commands on a chain whose leaf is served, interrupted: the guest loses nothing by it."""

import contextlib
import errno
import io
import os
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import vhdtool
from tests.support.holders import served
from tests.support.image_tools import clean, content, write
from tests.support.shims import DirectDisk, owner
from vhdtool.cli.main import run
from vhdtool.cli.vhd_util.main import run as vhd_util
from vhdtool.image.chain.open import open_chain
from vhdtool.image.create.differencing import snapshot
from vhdtool.image.create.empty import create_dynamic
from vhdtool.image.disk.dynamic import DynamicDisk
from vhdtool.image.journal import transaction as journal
from vhdtool.image.journal.undo import Change
from vhdtool.leases.epoch_record import EpochRecord
from vhdtool.leases.lease import EpochLease
from vhdtool.storage import FileStorage, Storage
from vhdtool.storage.image_lock import ImageInUse

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


def write_everywhere(disk: DirectDisk) -> None:
    """The guest writes all blocks, so that the file grows far past what it was."""
    for block in range(BLOCKS):
        disk.write(block * BLOCK, memoryview(LIVE))


def relink(leaf: Path) -> int:
    return vhd_util(["modify", "-n", str(leaf), "-p", str(leaf.with_name("base.vhd"))])


@pytest.mark.parametrize("how", [KeyboardInterrupt, Killed])
def test_a_relink_that_ends_early_keeps_the_guests_writes(
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
    shown = content(leaf)
    assert all(shown[at : at + 512] == LIVE for at in range(0, len(shown), BLOCK))


def kill_in_the_middle(words: list[str], monkeypatch: pytest.MonkeyPatch, changes: int = 1) -> None:
    """Runs `vhd-util` and ends it, as a kill does, after so many changes of the image."""
    done = journal.apply

    def part(storage: Storage, all_of_them: list[Change]) -> None:
        done(storage, all_of_them[:changes])
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(journal, "apply", part)
        with pytest.raises(Killed):
            vhd_util(words)


def test_a_killed_relink_is_repeated_beside_the_server(
    leaf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(leaf)
    with served(leaf) as disk:
        words = ["modify", "-n", str(leaf), "-p", str(leaf.with_name("base.vhd"))]
        kill_in_the_middle(words, monkeypatch)
        write_everywhere(disk)
        assert vhd_util(words) == 0
        assert disk.read(0, 512) == LIVE
    clean(leaf)
    assert content(leaf) != before
    with open_chain(leaf) as reader:
        assert [Path(layer.name).name for layer in reader.layers] == ["leaf.vhd", "base.vhd"]


@pytest.mark.parametrize("field", ["hidden", "repair"])
def test_a_killed_change_below_a_server_is_repaired(
    leaf: Path, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = leaf.with_name("node.vhd")
    hide = ["set", "-n", str(node), "-f", "hidden", "-v", "1"]
    before = content(leaf)
    with served(leaf) as disk:
        kill_in_the_middle(hide, monkeypatch)
        assert vhd_util(hide if field == "hidden" else ["repair", "-n", str(node)]) == 0
        assert disk.read(0, len(before)) == before
        disk.pause()
        disk.unpause()
    clean(leaf)
    assert content(leaf) == before


def test_a_running_change_is_waited_for_not_called_interrupted(
    leaf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else a guest could not go on while its storage manager hides a node."""
    node = leaf.with_name("node.vhd")
    begun = threading.Event()
    done = journal.apply

    def slow(storage: Storage, changes: list[Change]) -> None:
        begun.set()
        time.sleep(0.3)  # Long enough for the other process to find it half done.
        done(storage, changes)

    monkeypatch.setattr(journal, "apply", slow)
    change = threading.Thread(
        target=vhd_util, args=(["set", "-n", str(node), "-f", "hidden", "-v", "1"],)
    )
    change.start()
    begun.wait()
    with served(leaf):
        change.join()
    change = threading.Thread(
        target=vhd_util, args=(["set", "-n", str(node), "-f", "hidden", "-v", "0"],)
    )
    begun.clear()
    change.start()
    begun.wait()
    assert run(["check", str(leaf)]) == 0
    change.join()
    assert "interrupted" not in capsys.readouterr().out


def test_a_guest_starts_while_its_parents_are_coalesced(
    leaf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That takes minutes, and the leaf was not in use when it began."""
    before = content(leaf)
    done = DynamicDisk.write
    seen: list[object] = []

    def beside_a_guest(disk: DynamicDisk, offset: int, data: bytes) -> None:
        done(disk, offset, data)
        monkeypatch.setattr(DynamicDisk, "write", done)
        with served(leaf) as guest:
            seen.append(guest.read(0, len(before)))
            guest.write(0, memoryview(LIVE))
            with pytest.raises(ImageInUse):
                seen.append(vhdtool.open(leaf.with_name("base.vhd"), writable=True))

    monkeypatch.setattr(DynamicDisk, "write", beside_a_guest)
    assert vhd_util(["coalesce", "-n", str(leaf.with_name("node.vhd"))]) == 0
    assert seen == [before]
    clean(leaf)
    assert content(leaf) == LIVE + before[len(LIVE) :]


def test_a_node_that_a_dead_host_has_is_not_changed(
    leaf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = leaf.with_name("node.vhd")
    with closing(EpochLease(EpochRecord(Path(f"{node}.lease")), owner("far"))) as lease:
        epoch = lease.acquire()
    before = node.read_bytes()
    assert vhd_util(["set", "-n", str(node), "-f", "hidden", "-v", "1"]) == errno.EBUSY
    assert f"held by far (pid 1) at epoch {epoch}" in capsys.readouterr().err
    assert node.read_bytes() == before


COMMANDS: dict[str, list[str]] = {
    "coalesce": ["coalesce", "-n", "{node}"],
    "hide": ["set", "-n", "{node}", "-f", "hidden", "-v", "1"],
    "mark": ["set", "-n", "{base}", "-f", "marker", "-v", "1"],
    "relink": ["modify", "-n", "{node}", "-p", "{base}"],
    "grow": ["resize", "-n", "{base}", "-s", "32", "-f"],
}


def killed_at(write: int, words: list[str]) -> bool:
    """Runs `vhd-util` in a child process that ends before its nth write; whether it got so far."""
    pid = os.fork()
    if pid == 0:
        left = [write]

        def counted(change: Callable[..., object]) -> Callable[..., object]:
            def one(*arguments: object) -> object:
                if not left[0]:
                    os._exit(99)
                left[0] -= 1
                return change(*arguments)

            return one

        for name in ("pwrite", "zero", "truncate", "flush"):
            setattr(FileStorage, name, counted(getattr(FileStorage, name)))
        os.unlink = counted(os.unlink)  # type: ignore[assignment]
        with contextlib.redirect_stdout(io.StringIO()):
            os._exit(vhd_util(words))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 99)
    return code == 99


@pytest.mark.parametrize("name", COMMANDS)
def test_a_kill_below_a_served_leaf_changes_nothing_it_reads(leaf: Path, name: str) -> None:
    """After each kill the guest reads, writes, is paused and goes on; then it all is done again."""
    base, node = leaf.with_name("base.vhd"), leaf.with_name("node.vhd")
    words = [word.format(base=base, node=node) for word in COMMANDS[name]]
    model = bytearray(content(leaf))
    with served(leaf) as guest:
        write = 0
        while killed_at(write, words):
            write += 1
            assert guest.read(0, len(model)) == model
            at, data = write % BLOCKS * BLOCK, bytes([write]) * 512
            guest.write(at, memoryview(data))
            model[at : at + 512] = data
            for image in (base, node):
                if Path(journal.change_journal_path(image)).exists():
                    assert vhd_util(["repair", "-n", str(image)]) == 0
            guest.pause()
            guest.unpause()
            assert guest.read(0, len(model)) == model
        assert write > 2
    clean(leaf)
    assert content(leaf) == model
