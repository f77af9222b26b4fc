"""Builder of the guest: Debian's cloud kernel, and an initramfs written here byte by byte.

The packages are downloaded and unpacked, never installed, so the machine does not change. The
result is cached under a key of the package versions and of the load; the initramfs is deterministic
(no times, no owners), so every build of the same load gives the same file.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from vhdtool.errors import LabError
from vhdtool.image.journal.new_file import new_path
from vhdtool.lab.commands import run_command

KERNEL = "linux-image-cloud-amd64"
PACKAGES = (
    "busybox-static",
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libc6",
    "libexpat1",
    "libffi8",
    "zlib1g",
)
MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_blk",
)
"""In the order of loading; a module that is built into the kernel has no file and is left out."""
XEN_MODULES = ("xen-blkfront",)
"""What a Xen guest loads in their place."""
PYTHON_MODULES = (
    "abc",
    "codecs",
    "ctypes/__init__",
    "ctypes/_endian",
    "encodings/__init__",
    "encodings/aliases",
    "encodings/ascii",
    "encodings/utf_8",
    "encodings/latin_1",
    "genericpath",
    "io",
    "os",
    "posixpath",
    "stat",
    "struct",
    "types",
    "_collections_abc",
)
LIBRARIES = (
    "ld-linux-x86-64.so.2",
    "libc.so.6",
    "libm.so.6",
    "libexpat.so.1",
    "libffi.so.8",
    "libz.so.1",
)
EXTENSIONS = ("mmap", "_ctypes")
INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc none /proc
/bin/busybox mount -t sysfs none /sys
/bin/busybox mount -t devtmpfs none /dev
tty=ttyS0 disk=vd modules="{modules}"
case "$(/bin/busybox cat /proc/cmdline)" in
    *console=hvc0*) tty=hvc0 disk=xvd modules="{xen_modules}" ;;
esac
for m in $modules; do /bin/busybox insmod /modules/$m.ko; done
until [ -e /dev/${{disk}}c ]; do /bin/busybox sleep 0.05; done
for d in b c; do echo 2 > /sys/block/$disk$d/queue/nomerges; done
[ $disk = vd ] || for d in a b c; do /bin/busybox ln -s $disk$d /dev/vd$d; done
/bin/busybox stty -F /dev/$tty raw -echo opost onlcr
exec /usr/bin/python3 -I -S /load.py < /dev/$tty > /dev/$tty 2>&1
"""


def build(out: Path, progress: Callable[[str], None] = print) -> tuple[Path, Path]:
    """Make `vmlinuz` and `initrd.img` in `out`; return their paths.

    Does nothing when `out` holds the result for the same packages and the same load; a machine
    without apt takes what was built elsewhere for the same load.
    Raises LabError when a package cannot be downloaded or lacks a file.
    """
    stamp = out / "guest.json"
    kernel, initrd = out / "vmlinuz", out / "initrd.img"
    built = json.loads(stamp.read_text()) if stamp.exists() else {}
    there = kernel.exists() and initrd.exists()
    load, lists = payload_digest(), lists_time()
    # apt takes a second; while its lists are unchanged, so are the versions.
    if there and built.get("inside") == load and lists in (built.get("lists"), 0):
        return kernel, initrd
    names = (kernel_package(), *PACKAGES)
    versions = candidates(names)
    if there and built.get("inside") == load and built.get("versions") == versions:
        replace(stamp, json.dumps({**built, "lists": lists}).encode())
        return kernel, initrd
    out.mkdir(parents=True, exist_ok=True)
    progress(f"building the guest from {names[0]} (downloaded, not installed)")
    with tempfile.TemporaryDirectory(prefix="vhdlab-guest-") as scratch:
        debs = download(names, Path(scratch))
        files = dict(select(debs, Path(scratch)))
        image = files.pop("vmlinuz")
        replace(kernel, image)
        replace(initrd, gzip_fast(cpio(tree(files))))
    built = {"inside": load, "lists": lists, "versions": versions}
    replace(stamp, json.dumps(built).encode())
    return kernel, initrd


def kernel_package() -> str:
    """The versioned kernel package that Debian's metapackage depends on now."""
    text = _run(["apt-cache", "depends", KERNEL])
    for line in text.splitlines():
        if line.strip().startswith("Depends: linux-image-"):
            return line.split(": ", 1)[1].strip()
    raise LabError(
        f"guest: no kernel package behind {KERNEL}; run `apt-get update`, then try again"
    )


def lists_time() -> int:
    """When apt's package lists last changed, in nanoseconds."""
    try:
        return os.stat("/var/lib/apt/lists").st_mtime_ns
    except OSError:
        return 0


def candidates(names: tuple[str, ...]) -> dict[str, str]:
    """The version of each package that apt would download."""
    found: dict[str, str] = {}
    name = ""
    for line in _run(["apt-cache", "policy", *names]).splitlines():
        if not line.startswith(" "):
            name = line.rstrip(":")
        elif "Candidate:" in line:
            found[name] = line.split(":", 1)[1].strip()
    return found


def payload_digest() -> str:
    """Digest of the programs that go into the guest, and of this module."""
    digest = hashlib.sha256()
    for path in (Path(__file__), *payload().values()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def payload() -> dict[str, Path]:
    """The load: the project's own files inside the guest, by name."""
    here = Path(__file__).parent
    evidence = here.parents[1] / "oracle" / "evidence"
    found = {name: here / name for name in ("load.py", "slots.py")}
    return {**found, **{name: evidence / name for name in ("schedule.py", "depth.py")}}


def download(names: tuple[str, ...], scratch: Path) -> list[Path]:
    # apt warns that its sandbox user cannot write to a private directory; that is harmless.
    _run(["apt-get", "download", "-q", *names], cwd=scratch)
    debs = sorted(scratch.glob("*.deb"))
    if len(debs) != len(names):
        raise LabError(f"guest: {len(debs)} of {len(names)} packages arrived in {scratch}")
    return debs


def select(debs: list[Path], scratch: Path) -> Iterator[tuple[str, bytes]]:
    """(name in the initramfs, content) of each wanted file; the kernel as `vmlinuz`."""
    wanted = {f"/usr/lib/python3.11/{m}.py": f"usr/lib/python3.11/{m}.py" for m in PYTHON_MODULES}
    wanted["/usr/bin/python3.11"] = "usr/bin/python3"
    wanted["/bin/busybox"] = "bin/busybox"
    found: dict[str, bytes] = {}
    for deb in debs:
        for path, data in members(deb):
            base = path.rsplit("/", 1)[-1]
            if path in wanted:
                found[wanted[path]] = data
            elif base.startswith("vmlinuz-"):
                found["vmlinuz"] = data
            elif base.removesuffix(".ko") in MODULES + XEN_MODULES and base.endswith(".ko"):
                found["modules/" + base] = data
            elif base.split(".cpython-311")[0] in EXTENSIONS and base.endswith(".so"):
                found["usr/lib/python3.11/lib-dynload/" + base] = data
            else:
                for library in LIBRARIES:
                    if base == library or (base.startswith(library) and data):
                        where = "lib64/" if library.startswith("ld-") else "lib/"
                        found.setdefault(where + library, data)
    missing = [*wanted.values(), "vmlinuz", "modules/virtio_blk.ko"]
    missing += [("lib64/" if x.startswith("ld-") else "lib/") + x for x in LIBRARIES]
    missing = [name for name in missing if name not in found]
    if missing:
        raise LabError(f"guest: the downloaded packages lack {', '.join(missing)}")
    yield from found.items()


def members(deb: Path) -> Iterator[tuple[str, bytes]]:
    data = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", str(deb)], capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            if member.isfile():
                stream = archive.extractfile(member)
                assert stream is not None
                yield member.name.removeprefix("."), stream.read()


def tree(files: dict[str, bytes]) -> list[tuple[str, int, bytes]]:
    """All entries of the initramfs: (name, mode, content), directories first."""
    found = {
        name: " ".join(m for m in modules if f"modules/{m}.ko" in files)
        for name, modules in (("modules", MODULES), ("xen_modules", XEN_MODULES))
    }
    files = dict(files)
    files["init"] = INIT.format(**found).encode()
    for name, path in payload().items():
        files[name] = path.read_bytes()
    # `-I` hides the script's directory, so its modules go beside the core modules.
    for name in payload().keys() - {"load.py"}:
        files["usr/lib/python3.11/" + name] = files.pop(name)
    folders = {"proc", "sys", "dev", "usr/lib/python3.11/lib-dynload"}
    for name in [*files, *folders]:
        parts = name.split("/")[:-1]
        folders |= {"/".join(parts[: i + 1]) for i in range(len(parts))}
    entries = [(name, 0o040755, b"") for name in sorted(folders)]
    return entries + [(name, 0o100755, files[name]) for name in sorted(files)]


def cpio(entries: list[tuple[str, int, bytes]]) -> bytes:
    """A `newc` archive, as in the kernel's documentation of the initramfs buffer format."""
    out = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08x" % field for field in fields)
        out += name.encode() + b"\0"
        out += bytes(-len(out) % 4)
        out += data
        out += bytes(-len(out) % 4)
    return bytes(out)


def gzip_fast(data: bytes) -> bytes:
    import gzip

    return gzip.compress(data, compresslevel=6, mtime=0)


def replace(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of it."""
    with new_path(path, overwrite=True) as part:
        Path(part).write_bytes(data)


def _run(command: list[str], cwd: Path | None = None) -> str:
    if shutil.which(command[0]) is None:
        raise LabError(f"guest: {command[0]} is missing; the guest is built on a Debian system")
    try:
        return run_command(command, cwd=cwd)
    except LabError as error:
        raise LabError(f"guest: `{' '.join(command[:3])} …` failed: {error}") from None
