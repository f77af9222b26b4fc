"""Images that Hyper-V, Virtual PC and disk2vhd made, out of Debian's qemu source package."""

import bz2
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

NAMES = ("hyperv2012r2-dynamic.vhd", "virtualpc-dynamic.vhd", "d2v-zerofilled.vhd")
_APT = Path("/etc/apt")
_FOLDER = "tests/qemu-iotests/sample_images/"


def cache() -> Path:
    base = os.environ.get("VHDLAB_CACHE") or Path.home() / ".cache" / "vhdlab"
    return Path(base) / "qemu-source"


def real_image(name: str) -> Path:
    """The image's path; the source package is downloaded when it is first needed (33 MB)."""
    path = cache() / name
    if not path.exists():
        _unpack(_tarball())
    return path


def _unpack(tarball: Path) -> None:
    wanted = {f"{_FOLDER}{name}.bz2": name for name in NAMES}
    with tarfile.open(tarball) as archive:
        for member in archive:
            name = wanted.get(member.name.split("/", 1)[-1])
            packed = archive.extractfile(member) if name is not None else None
            if name is not None and packed is not None:
                part = cache() / f"{name}.part"
                part.write_bytes(bz2.decompress(packed.read()))
                part.rename(cache() / name)


def _source_lists(folder: Path) -> Path:
    """The machine's own package lists, asked for sources instead of binaries."""
    folder.mkdir(exist_ok=True)
    for path in [_APT / "sources.list", *sorted((_APT / "sources.list.d").glob("*"))]:
        if path.suffix in (".list", ".sources") and path.exists():
            text = re.sub(r"(?m)^(deb|Types: *deb)\b(?!-)", r"\1-src", path.read_text())
            (folder / f"machine-{path.name}").write_text(text)
    return folder


def _tarball() -> Path:
    """apt downloads and verifies the package; its state stays in our own directory."""
    where = cache()
    found = next(iter(where.glob("qemu_*.orig.tar.xz")), None)
    if found is not None:
        return found
    state = where / "apt"
    (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (state / "cache").mkdir(exist_ok=True)
    options = {
        "Dir::Etc::SourceList": state / "sources.list",
        "Dir::Etc::SourceParts": _source_lists(state / "parts"),
        "Dir::State::Lists": state / "lists",
        "Dir::Cache": state / "cache",
        "APT::Sandbox::User": "",
    }
    command = ["apt-get", "-qq"]
    for key, value in options.items():
        command += ["-o", f"{key}={value}"]
    for words in (["update"], ["source", "--download-only", "--tar-only", "qemu"]):
        done = subprocess.run(
            [*command, *words], cwd=where, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, f"apt-get {words[0]}: {done.stdout}{done.stderr}"
    shutil.rmtree(state)
    return next(iter(where.glob("qemu_*.orig.tar.xz")))
