"""Nobody writes beside a holder: every command that writes, every kind of holder, every name."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

import vhdtool
from tests.support.holders import served
from tests.support.image_tools import clean, content, write
from tests.support.shims import DirectDisk, owner
from vhdtool.cli.main import run
from vhdtool.cli.vhd_util.main import run as vhd_util
from vhdtool.errors import ActivationRefused
from vhdtool.image.create.differencing import snapshot
from vhdtool.image.create.empty import create_dynamic
from vhdtool.leases.epoch_record import EpochRecord
from vhdtool.leases.lease import EpochLease
from vhdtool.storage.image_lock import ImageInUse
from vhdtool.tapdisk.access import ImageOpener, Settings

BLOCK = 512 << 10
SIZE = 8 * BLOCK
Holder = Callable[[Path], object]


@contextmanager
def library(image: Path) -> Iterator[object]:
    with vhdtool.open(image, writable=True) as held:
        yield held


@contextmanager
def child_served(image: Path) -> Iterator[DirectDisk]:
    """The image is a parent of a disk in use."""
    kid = image.with_name("holders-kid.vhd")
    if not kid.exists():
        snapshot(image, kid)
    with served(kid) as disk:
        yield disk


HOLDERS = [served, library, child_served]
WRITERS: dict[str, list[str]] = {
    "resize": ["resize", "{image}", "8m"],
    "fill": ["fill", "{image}"],
    "repair": ["repair", "{image}", "--yes"],
    "hidden": ["modify", "{image}", "--hidden"],
    "parent": ["modify", "{image}", "--parent", "{base}"],
    "coalesce-into": ["coalesce", "{kid}", "--into", "{image}"],
    "create": ["create", "--force", "{image}", "4m"],
    "create-fixed": ["create", "--force", "--fixed", "{image}", "4m"],
    "create-child": ["create", "--force", "--parent", "{base}", "{image}"],
    "snapshot-over": ["snapshot", "--force", "{base}", "{image}"],
    "convert-over": ["convert", "--force", "{base}", "{image}"],
    "convert-raw-over": ["convert", "--force", "-O", "raw", "{base}", "{image}"],
}
VHD_UTIL: dict[str, list[str]] = {
    "create": ["create", "-n", "{image}", "-s", "4"],
    "snapshot-over": ["snapshot", "-n", "{image}", "-p", "{base}"],
    "resize": ["resize", "-n", "{image}", "-s", "8", "-j", "{folder}/j"],
    "fill": ["fill", "-n", "{image}"],
    "zero": ["modify", "-n", "{image}", "-z"],
    "physical-size": ["modify", "-n", "{image}", "-s", "8388608"],
}


def words_of(pattern: list[str], image: Path) -> list[str]:
    folder = image.parent
    names = {"image": image, "base": folder / "base.vhd", "kid": folder / "kid.vhd"}
    return [word.format(folder=folder, **names) for word in pattern]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A child with data, over base.vhd, with kid.vhd above it."""
    create_dynamic(tmp_path / "base.vhd", SIZE, block_bytes=BLOCK)
    write(tmp_path / "base.vhd", (0, b"base" * 128))
    snapshot(tmp_path / "base.vhd", tmp_path / "image.vhd")
    write(tmp_path / "image.vhd", (BLOCK, b"mine" * 128))
    snapshot(tmp_path / "image.vhd", tmp_path / "kid.vhd", skip_empty=False)
    write(tmp_path / "kid.vhd", (2 * BLOCK, b"kids" * 128))
    return tmp_path / "image.vhd"


def files(folder: Path) -> dict[str, bytes]:
    """Every file but the epoch records, which a holder makes."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and ".lease" not in path.name
    }


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("name", WRITERS)
def test_a_command_that_writes_is_refused_beside_a_holder(
    image: Path, name: str, holder: Holder, capsys: pytest.CaptureFixture[str]
) -> None:
    with ExitStack() as stack:
        stack.enter_context(holder(image))  # type: ignore[arg-type]
        before = files(image.parent)
        assert run(words_of(WRITERS[name], image)) == 1
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1
        assert f"(pid {os.getpid()})" in said
        assert "repair" not in said.replace("repair-", "")
        assert files(image.parent) == before
    clean(image)
    assert content(image)[:4] == b"base"


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("name", VHD_UTIL)
def test_vhd_util_is_refused_with_ebusy(
    image: Path, name: str, holder: Holder, capsys: pytest.CaptureFixture[str]
) -> None:
    with ExitStack() as stack:
        stack.enter_context(holder(image))  # type: ignore[arg-type]
        before = files(image.parent)
        assert vhd_util(words_of(VHD_UTIL[name], image)) == errno.EBUSY
        assert "is in use by" in capsys.readouterr().err
        assert files(image.parent) == before


@pytest.mark.parametrize("name", [*WRITERS])
def test_without_a_holder_the_same_commands_are_let_in(image: Path, name: str) -> None:
    """Else the tests above could not fail. A parent and a child need each other's sizes."""
    if name == "coalesce-into":
        snapshot(image, image.parent / "kid.vhd", overwrite=True)
    assert run(words_of(WRITERS[name], image)) in (0, 3)


@pytest.mark.parametrize("other", ["symbolic", "hard", "chain"])
def test_another_name_of_the_image_is_the_same_image(
    image: Path, tmp_path: Path, other: str
) -> None:
    alias = tmp_path / "alias.vhd"
    if other == "hard":
        os.link(image, alias)
    else:
        alias.symlink_to(image)
    if other == "chain":
        alias = tmp_path / "far.vhd"
        alias.symlink_to(tmp_path / "alias.vhd")
    with served(image):
        with pytest.raises(ImageInUse, match=f"pid {os.getpid()}"), served(alias):
            pass
        assert run(["fill", str(alias)]) == 1
    with served(alias) as disk:
        disk.write(0, memoryview(b"n" * 512))
        assert run(["fill", str(image)]) == 1
    assert content(image)[:4] == b"nnnn"


def test_the_record_is_found_from_the_real_file(image: Path, tmp_path: Path) -> None:
    alias = tmp_path / "alias.vhd"
    alias.symlink_to(image)
    with served(alias):
        assert Path(f"{image}.lease").exists()
        assert not Path(f"{alias}.lease").exists()


def test_a_refused_activation_leaves_no_file(image: Path, tmp_path: Path) -> None:
    alias = tmp_path / "alias.vhd"
    os.link(image, alias)
    with served(image), pytest.raises(ImageInUse), served(alias):
        pass
    assert not Path(f"{alias}.lease").exists()


def test_the_library_opens_an_image_for_writing_once(image: Path) -> None:
    with library(image):
        with pytest.raises(ImageInUse), library(image):
            pass
        with vhdtool.open(image) as reader:
            assert reader.read(0, 4) == b"base"
    with library(image):
        pass


def test_the_guard_off_server_excludes_nobody(image: Path) -> None:
    """tapdisk2 took no lock, and the bug has to stay reproducible."""
    with served(image, guard=False), served(image, guard=False):
        assert run(["modify", str(image), "--hidden"]) == 0


def test_two_children_of_a_parent_are_served_at_once(image: Path, tmp_path: Path) -> None:
    snapshot(image, tmp_path / "kid2.vhd")
    with served(tmp_path / "kid.vhd"), served(tmp_path / "kid2.vhd"):
        with pytest.raises(ImageInUse), served(image):
            pass
        with pytest.raises(ImageInUse), served(tmp_path / "base.vhd"):
            pass


def test_a_served_parent_keeps_its_children_from_being_served(image: Path) -> None:
    """It may change under them at any time."""
    with served(image), pytest.raises(ImageInUse), served(image.parent / "kid.vhd"):
        pass


def test_what_sm_does_below_a_served_leaf_is_let_in(image: Path, tmp_path: Path) -> None:
    """Hide a node, relink the leaf itself, write a node's data into its parent, grow a node."""
    base, kid = tmp_path / "base.vhd", tmp_path / "kid.vhd"
    with served(kid) as disk:
        disk.write(3 * BLOCK, memoryview(b"live" * 128))
        shown = disk.read(0, SIZE)
        assert vhd_util(["set", "-n", str(image), "-f", "hidden", "-v", "1"]) == 0
        assert vhd_util(["coalesce", "-n", str(image)]) == 0
        assert vhd_util(["modify", "-n", str(kid), "-p", str(base)]) == 0
        assert disk.read(0, SIZE) == shown
        # SM pauses and unpauses the disk now, so that the chain is opened anew.
        disk.pause()
        disk.unpause()
        assert disk.read(0, SIZE) == shown
        disk.write(0, memoryview(b"more" * 128))
        assert vhd_util(["coalesce", "-n", str(kid)]) == errno.EBUSY
        assert vhd_util(["set", "-n", str(kid), "-f", "hidden", "-v", "1"]) == errno.EBUSY
        assert vhd_util(["snapshot", "-n", str(tmp_path / "s.vhd"), "-p", str(kid)]) == errno.EBUSY
        disk.pause()
        assert vhd_util(["snapshot", "-n", str(tmp_path / "s.vhd"), "-p", str(kid)]) == 0
    clean(kid)
    assert content(kid)[:4] == b"more"


def test_a_parent_is_not_served_while_it_is_written_into(image: Path, tmp_path: Path) -> None:
    from vhdtool.leases.claim import claimed
    from vhdtool.storage.image_lock import LockMode

    with claimed(image, LockMode.BENEATH):
        with served(tmp_path / "kid.vhd"):
            pass
        with pytest.raises(ImageInUse), served(image):
            pass
        with pytest.raises(ImageInUse), claimed(image, LockMode.BENEATH):
            pass


def dead_lease(image: Path) -> int:
    """The lease of a host that is gone, in the record of the image."""
    with closing(EpochLease(EpochRecord(Path(f"{image}.lease")), owner("far"))) as lease:
        return lease.acquire()


@pytest.mark.parametrize("name", ["resize", "fill", "repair", "hidden", "coalesce-into"])
def test_a_lease_of_a_dead_host_takes_the_operators_word(
    image: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(WRITERS[name], image)
    if name == "coalesce-into":
        snapshot(image, image.parent / "kid.vhd", overwrite=True)
    epoch = dead_lease(image)
    before = files(image.parent)
    assert run(words) == 1
    assert f"held by far (pid 1) at epoch {epoch}" in capsys.readouterr().err
    assert run([*words, "--force", str(epoch + 7)]) == 1
    assert "names another epoch" in capsys.readouterr().err
    assert files(image.parent) == before
    assert run([*words, "--force", str(epoch)]) in (0, 3)
    assert EpochRecord(Path(f"{image}.lease")).read()[1] is None


def test_a_new_image_over_a_dead_hosts_needs_force(image: Path) -> None:
    epoch = dead_lease(image)
    words = ["create", "--force", str(image), "4m"]
    assert run(words) == 1
    assert run([*words, "--force-epoch", str(epoch)]) == 0


def test_a_command_leaves_its_epochs_in_the_epoch_record(
    image: Path,
) -> None:
    with served(image):
        pass
    record = EpochRecord(Path(f"{image}.lease"))
    assert record.read() == (2, None)
    assert run(["fill", str(image)]) == 0
    assert record.read() == (4, None)
    record.close()


def test_an_image_that_was_never_served_gets_no_record(image: Path) -> None:
    assert run(["fill", str(image)]) == 0
    assert not Path(f"{image}.lease").exists()


@pytest.mark.parametrize("change", ["removed", "renamed", "replaced"])
def test_an_image_whose_name_goes_fences_its_server(image: Path, change: str) -> None:
    aside = image.with_name("aside.vhd")
    with served(image) as disk:
        disk.write(0, memoryview(b"x" * 512))
        if change == "removed":
            image.unlink()
        elif change == "renamed":
            image.rename(aside)
        else:
            aside.write_bytes(image.read_bytes())
            aside.rename(image)
        # A metadata write looks at once.
        with pytest.raises(OSError, match="written to"):
            disk.write(7 * BLOCK, memoryview(b"y" * 512))
        assert disk.state == "fenced"
    assert not image.exists() or b"y" * 512 not in image.read_bytes()


def test_one_record_for_an_image(image: Path, tmp_path: Path) -> None:
    from vhdtool.errors import UsageError
    from vhdtool.leases.location import record_of, remember_record

    elsewhere = tmp_path / "records"
    elsewhere.mkdir()
    assert record_of(image, elsewhere / "a.lease") == elsewhere / "a.lease"
    remember_record(image, elsewhere / "a.lease")
    with pytest.raises(UsageError, match=r"a\.lease; name that one with --record"):
        record_of(image)
    with pytest.raises(UsageError, match=r"a\.lease"):
        record_of(image, elsewhere / "b.lease")
    assert record_of(image, elsewhere / "a.lease") == elsewhere / "a.lease"
    with served(tmp_path / "base.vhd"):
        pass
    with pytest.raises(UsageError, match="cannot name another"):
        record_of(tmp_path / "base.vhd", elsewhere / "b.lease")
    assert record_of(tmp_path / "base.vhd", tmp_path / "base.vhd.lease")


def test_a_directory_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="is a directory"), served(tmp_path, size=SIZE):
        pass
    assert not Path(f"{tmp_path}.lease").exists()


def test_readers_share_an_image_and_keep_writers_out(image: Path) -> None:
    def reader() -> DirectDisk:
        from vhdtool.leases.lease import ReaderLease

        disk = DirectDisk(
            Settings(True, ImageOpener(), lambda _: ReaderLease(), lambda *_, **__: None, True)
        )
        disk.attach(image, SIZE)
        disk.activate()
        return disk

    first, second = reader(), reader()
    assert first.read(0, 4) == second.read(0, 4) == b"base"
    with pytest.raises(ActivationRefused), served(image):
        pass
    assert run(["fill", str(image)]) == 1
    first.detach()
    second.detach()
    assert not Path(f"{image}.lease").exists()
    with served(image), pytest.raises(ActivationRefused):
        reader()


@pytest.mark.parametrize("how", ["served", "dead host"])
def test_nobody_is_sent_to_repair_while_the_lease_is_held(
    image: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with ExitStack() as stack:
        disk = stack.enter_context(served(image))
        disk.write(5 * BLOCK, memoryview(b"n" * 512))
        if how == "dead host":
            unclean = image.read_bytes()
            stack.close()
            image.write_bytes(unclean)
            dead_lease(image)
        assert run(["check", str(image)]) == 3
        said = capsys.readouterr().out
        assert "footer" in said
        assert "vhdtool repair" not in said
        assert "check it again when it is free" in said
        assert "the lease is held by" in said


def test_a_copy_of_an_image_in_use_says_so(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(image):
        assert run(["convert", str(image), str(tmp_path / "copy.vhd")]) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if f"is in use by python (pid {os.getpid()})" in line] == said
    assert "may be inconsistent" in said[0]
    assert run(["convert", "--force", str(image), str(tmp_path / "copy.vhd")]) == 0
    assert capsys.readouterr().err == ""
