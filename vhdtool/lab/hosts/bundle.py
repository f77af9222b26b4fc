"""The part of the package that hosts run, as one zip file that depends on nothing but Python."""

import io
import zipfile
from pathlib import Path

from vhdtool.errors import UsageError
from vhdtool.image.journal.new_file import new_path

PARTS = (
    "vhd",
    "storage",
    "nbd",
    "leases",
    "image",
    "tapdisk",
    "vdi",
    "lab/__init__.py",
    "lab/commands.py",
    "lab/hosts/__init__.py",
    "lab/hosts/agent.py",
    "lab/hosts/agent_files.py",
    "lab/hosts/agent_holdings.py",
    "lab/hosts/agent_images.py",
    "lab/hosts/agent_vdi.py",
    "lab/hosts/xen_stream.py",
)
"""Standard library only: hosts need Python 3.11 and nothing from PyPI."""
_EPOCH = (1980, 1, 1, 0, 0, 0)


def files() -> list[tuple[str, bytes]]:
    """(name in the archive, content), sorted."""
    root = Path(__file__).resolve().parents[2]
    if not root.is_dir():
        raise UsageError("the sources are not files here; use vhdtool as pip installs it")
    paths = [path for path in root.glob("*.py") if path.name != "__main__.py"]
    for part in PARTS:
        path = root / part
        paths += [path] if path.is_file() else path.rglob("*.py")
    # Extension modules, where they were built, for any CPython of this kind of machine. The hosts
    # unpack the archive; one that cannot load them does without.
    paths += root.rglob("_*.abi3.so")
    return sorted((f"vhdtool/{path.relative_to(root)}", path.read_bytes()) for path in paths)


def write(out: Path) -> bool:
    """Write the archive; False when it was there with the same content."""
    return write_archive(out, files())


def write_archive(out: Path, content: list[tuple[str, bytes]], start: bytes = b"") -> bool:
    """Write a zip file; False when it was there with the same content.

    `start`: what a program has in front of the archive, which is then executable.
    """
    buffer = io.BytesIO()
    buffer.write(start)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content:
            # A fixed time and mode: the same sources give the same bytes.
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    data = buffer.getvalue()
    if out.exists() and out.read_bytes() == data:
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    with new_path(out, overwrite=True) as part:
        Path(part).write_bytes(data)
        if start:
            Path(part).chmod(0o755)
    return True
