"""What others do between two steps of opening or replacing an image: nobody writes a lost file."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import vhdtool
from tests.support.holders import served
from tests.support.image_tools import clean, content, write
from vhdtool.cli.main import run
from vhdtool.errors import ImageExists, LeaseLost
from vhdtool.image.chain import open as chain
from vhdtool.image.create.differencing import snapshot
from vhdtool.image.create.empty import create_dynamic
from vhdtool.image.edit.coalesce import coalesce, fill
from vhdtool.image.journal.new_file import new_path
from vhdtool.image.metadata.read import Metadata
from vhdtool.leases import claim
from vhdtool.storage import Storage
from vhdtool.storage import locked_file as image_file
from vhdtool.storage.image_lock import ImageInUse, LockMode, lock_image
from vhdtool.storage.locked_file import ImageFile

BLOCK = 512 << 10
SIZE = 8 * BLOCK


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """kid.vhd over image.vhd."""
    create_dynamic(tmp_path / "image.vhd", SIZE, block_bytes=BLOCK)
    write(tmp_path / "image.vhd", (0, b"mine" * 128))
    snapshot(tmp_path / "image.vhd", tmp_path / "kid.vhd")
    write(tmp_path / "kid.vhd", (BLOCK, b"kids" * 128))
    return tmp_path / "image.vhd"


def open_for_writing(path: Path) -> None:
    with vhdtool.open(path, writable=True):
        pass


def serve(path: Path) -> None:
    with served(path):
        pass


@pytest.mark.parametrize("use", [fill, open_for_writing, serve])
@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_a_file_that_is_replaced_before_it_is_locked_is_not_used(
    image: Path, use: Callable[[Path], object], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock on the old file is free, but nobody finds that file again."""

    def late(fd: int, name: str, mode: LockMode, qemu: bool = True) -> None:
        if change == "removed":
            image.unlink()
        else:
            os.replace(other, image)
        lock_image(fd, name, mode, qemu)

    other = image.with_name("other.vhd")
    create_dynamic(other, SIZE, block_bytes=BLOCK)
    new = other.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(image_file, "lock_image", late)
        with pytest.raises(ImageInUse, match="try again"):
            use(image)
    assert not image.exists() if change == "removed" else image.read_bytes() == new


def test_a_parent_that_is_replaced_before_it_is_held_is_not_used(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(fd: int, name: str, mode: LockMode, qemu: bool = True) -> None:
        os.replace(image, image.with_name("aside.vhd"))
        image.write_bytes(image.with_name("aside.vhd").read_bytes())
        lock_image(fd, name, mode, qemu)

    monkeypatch.setattr(claim, "lock_image", late)
    with pytest.raises(ImageInUse, match="try again"), served(image.with_name("kid.vhd")):
        pass


def test_a_reopen_does_not_go_on_with_another_file(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ImageFile(image, LockMode.SERVED) as one:
        aside = image.with_name("aside.vhd")

        def late() -> None:
            os.replace(image, aside)
            image.write_bytes(aside.read_bytes())

        monkeypatch.setattr(one, "check_identity", late)
        with pytest.raises(LeaseLost, match="another file"):
            one.reopened()


@pytest.mark.parametrize("use", [serve, coalesce, fill, open_for_writing])
def test_the_parents_are_held_before_their_metadata_are_read(
    image: Path, use: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a writer could come and go in between, and their tables would be those of before."""
    kid = image.with_name("kid.vhd")
    held = image if use is not coalesce else kid
    tried = []
    look = chain.readable

    def late(storage: Storage) -> Metadata:
        if Path(storage.name) == held:
            try:
                ImageFile(held, LockMode.EXCLUSIVE).close()
                tried.append("written")
            except ImageInUse:
                tried.append("refused")
        return look(storage)

    monkeypatch.setattr(chain, "readable", late)
    use(kid)
    assert tried[-1] == "refused"
    assert use is coalesce or set(tried) == {"refused"}


def test_an_image_that_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    """A conversion takes minutes, and somebody may serve what was not there when it began."""
    target = tmp_path / "new.vhd"
    making = new_path(target, overwrite=True)
    Path(making.__enter__()).write_bytes(b"x")
    create_dynamic(target, SIZE, block_bytes=BLOCK)
    write(target, (0, b"live" * 128))
    with pytest.raises(ImageExists, match="meanwhile"):
        making.__exit__(None, None, None)
    clean(target)
    assert content(target)[:4] == b"live"
    assert os.listdir(tmp_path) == ["new.vhd"]


def test_an_image_that_replaced_the_old_one_is_not_replaced(image: Path) -> None:
    other = image.with_name("other.vhd")
    create_dynamic(other, SIZE, block_bytes=BLOCK)
    making = new_path(image, overwrite=True)
    Path(making.__enter__()).write_bytes(b"x")
    os.replace(other, image)
    with pytest.raises(ImageInUse, match="try again"):
        making.__exit__(None, None, None)
    clean(image)


@pytest.mark.parametrize("name", ["ü" * 125, "n" * 251, "\udcff" * 251])
def test_the_longest_names_that_the_file_system_takes_are_taken(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.vhd"
    assert run(["create", str(path), "4m"]) == 0
    assert run(["fill", str(path)]) == 0
    assert run(["create", "--force", str(path), "4m"]) == 0
    assert os.listdir(tmp_path) == [path.name]
