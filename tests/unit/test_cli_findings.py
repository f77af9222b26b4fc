"""`check` and `scan --check` as their user sees them: few lines, colors, the next step last."""

import json
import struct
from pathlib import Path

import pytest

from tests.support.damaged import CORPUS, sound
from tests.support.vhd_images import Picture
from vhdtool.cli.findings import MOST_LINES, finding_lines
from vhdtool.cli.main import run
from vhdtool.image.create.differencing import snapshot
from vhdtool.image.metadata.findings import Finding

MIB = 1 << 20
BLOCK = 512 << 10


def made(path: Path, code: str | None = None) -> str:
    """An image of the corpus, or a sound one, at `path`."""
    if code is None:
        path.write_bytes(sound().draw().getvalue())
    else:
        folder = path.parent / f"for-{path.name}"
        folder.mkdir()
        CORPUS[code](folder)
        (folder / "image.vhd").rename(path)
    return str(path)


def lines(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str]]:
    capsys.readouterr()
    code = run(list(words))
    out, err = capsys.readouterr()
    assert err == ""
    return code, out.splitlines()


def past_end(block: int) -> Finding:
    text = f"block {block} at sector 7000 is behind the end"
    return Finding("bat-past-end", "corrupt", text, block, 4 * block, (block * 8, 8))


def test_one_damaged_table_is_a_few_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = Picture(6000 * BLOCK, BLOCK)
    raw = bytearray(picture.draw().getvalue())
    start = picture.header.bat_offset
    raw[start : start + 4 * 6000] = struct.pack(">6000I", *range(1 << 30, (1 << 30) + 6000))
    (tmp_path / "a.vhd").write_bytes(raw)
    for words in (["check"], ["repair"], ["check", "--no-bitmaps"]):
        code, out = lines(capsys, *words, str(tmp_path / "a.vhd"))
        assert code == 2
        assert len(out) < 10
        assert "6000 findings about blocks 0 to 5999; the first: block 0" in "\n".join(out)


def test_neighbours_share_a_line_and_others_do_not() -> None:
    found = [past_end(block) for block in (7, 3, 4, 5)]
    first, second = finding_lines(found)
    assert "3 findings about blocks 3 to 5; the first: block 3 " in first
    assert first.endswith("guest sectors 24 to 47")
    assert second == (
        "corrupt: bat-past-end: block 7 at sector 7000 is behind the end (byte 28); "
        "guest sectors 56 to 63"
    )


def test_scattered_findings_end_with_their_number() -> None:
    out = finding_lines([past_end(block) for block in range(0, 200, 2)])
    assert len(out) == MOST_LINES + 1
    assert out[-1] == "corrupt: bat-past-end: 95 more of these; `check --json` lists each"


def test_the_last_line_of_check_is_the_next_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = made(tmp_path / "a b.vhd", "footer-killed")
    code, out = lines(capsys, "check", image)
    assert code == 3
    assert out[-1].startswith(f"next: vhdtool repair '{image}' --yes")
    code, out = lines(capsys, "check", made(tmp_path / "b.vhd"))
    assert code == 0
    assert out == [f"{tmp_path}/b.vhd: consistent, 3 of 8 blocks allocated"]


@pytest.mark.parametrize(
    ("codes", "exit_code"),
    [
        ([None, None], 0),
        ([None, "footer-killed"], 3),
        (["footer-killed", "block-overlap", None], 2),
        ([None, "nothing", "footer-killed"], 1),
        (["nothing", "block-overlap"], 2),
    ],
)
def test_several_images_have_a_line_each_and_a_sum(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    codes: list[str | None],
    exit_code: int,
) -> None:
    images = []
    for number, code in enumerate(codes):
        path = tmp_path / f"{number}.vhd"
        images.append(str(path) if code == "nothing" else made(path, code))
    seen, out = lines(capsys, "check", *images)
    assert seen == exit_code
    for image, line in zip(images, out, strict=False):
        assert line.startswith(f"{image}: ")
    assert out[len(images)].startswith(f"{len(images)} images: ")
    assert len(out) == len(images) + (2 if exit_code else 1)
    if exit_code in (2, 3):
        bad = images[codes.index("block-overlap" if exit_code == 2 else "footer-killed")]
        assert out[-1].startswith(f"next: vhdtool check {bad}: ")
    seen, out = lines(capsys, "check", "--json", *images)
    assert seen == exit_code
    values = json.loads("\n".join(out))
    assert [one["image"] for one in values] == images
    assert all(("error" in one) == (one["exit_code"] == 1) for one in values)
    assert lines(capsys, "check", "-q", *images) == (exit_code, [])


def test_scan_checks_each_image_and_names_foreign_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, kid = tmp_path / "base.vhd", tmp_path / "kid.vhd"
    base.write_bytes(sound().draw().getvalue())
    snapshot(base, kid, block_bytes=BLOCK)
    (tmp_path / "q.vhd").write_bytes(b"QFI\xfb" + bytes(1000))
    (tmp_path / "x.vhdx").write_bytes(b"vhdxfile" + bytes(1000))
    code, out = lines(capsys, "scan", str(tmp_path))
    assert code == 0
    assert f"{tmp_path}/q.vhd: a qcow2 image, not a VHD" in out
    assert f"{tmp_path}/x.vhdx: a VHDX image, not a VHD" in out
    code, out = lines(capsys, "scan", "--check", str(tmp_path))
    assert (code, out[0], out[1]) == (0, f"{base}: consistent", f"  {kid}: consistent")
    assert out[-1] == "2 images: 2 consistent"
    made(tmp_path / "worse.vhd", "block-overlap")
    (tmp_path / "worse.vhd").replace(base)
    code, out = lines(capsys, "scan", "--check", str(tmp_path))
    assert code == 2
    assert out[0].startswith(f"{base}: corrupt: block-overlap: ")


@pytest.mark.parametrize("magic", [b"QFI\xfb", b"vhdxfile"])
def test_a_foreign_image_is_named_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], magic: bytes
) -> None:
    path = tmp_path / "a.vhd"
    path.write_bytes(magic + bytes(2000))
    assert run(["check", str(path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    name = "qcow2" if magic[0] == ord("Q") else "VHDX"
    assert line.startswith(f"vhdtool: {path}: a {name} image, not a VHD; `qemu-img check`")


def test_verdicts_are_colored_on_a_terminal_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = made(tmp_path / "a.vhd")
    # An environment of CI may say that there is no color.
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b" not in lines(capsys, "check", image)[1][0]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert "\x1b[32m" in lines(capsys, "check", image)[1][0]
    broken = made(tmp_path / "b.vhd", "block-overlap")
    assert "\x1b[31m" in lines(capsys, "check", broken)[1][0]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in lines(capsys, "check", image)[1][0]
