"""What a host holds of a case at one moment: locks, processes, devices, files and more.

Each thing is a line of text, so that two lists can be compared without knowing what a thing is.
A thing belongs to the case when it leads to the image, to the run's private directory, or to one
of the run's ports; a host may have loop devices, mounts and iSCSI sessions of its own.
Standard library only.
"""

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vhdtool.leases.epoch_record import EpochRecord
from vhdtool.leases.scsi_reservation import registrations
from vhdtool.vdi.keys import key_file

_FLOCK = "hhqqi4x"
_LISTENS, _ESTABLISHED = "0A", "01"
ELSEWHERE = "elsewhere: "
"""Begins the line of a thing that is seen here but belongs, as far as we know, to another host."""
_COMMAND = 160
"""Characters of a command line that are recorded."""


def describe_holdings(target: list[Any], **where: Any) -> dict[str, Any]:
    """The agent's operation `held`: Holdings of this host, now."""
    name, port = target
    return Holdings(target=(name, port), **where).describe()


class Holdings:
    """What this host holds of a case. `image` is the path of the case's image here.

    `folder`: the run's private directory; `ports`: TCP ports that only the run uses; `target`:
    name and port of the lab's iSCSI target; `lun`: its URL, where the case has one. Tests give
    other directories as `proc` and `sys`.
    """

    def __init__(
        self,
        image: str,
        folder: str,
        ports: list[int],
        target: tuple[str, int],
        lun: str | None = None,
        proc: Path = Path("/proc"),
        sys: Path = Path("/sys"),
    ) -> None:
        self.image, self.folder, self.ports = image, folder, ports
        self.target, self.lun = target, lun
        self.proc, self.sys = proc, sys
        self.lease = image + ".lease"
        self._files = {path: _identity(path) for path in (self.image, self.lease)}
        self._processes = dict(self._find_processes())

    def describe(self) -> dict[str, Any]:
        """{"epoch": the image's newest epoch, "held": {kind: sorted lines}}."""
        epoch, lease = self._lease()
        devices = {"loop": self._loop(), "nbd": self._nbd(), "iscsi": self._iscsi_disks()}
        names = [name for found in devices.values() for name in found]
        mapped = self._mapped(names)
        held = {
            "locks": self._locks(),
            "lease": lease,
            "keys": [*(registrations(self.lun) if self.lun else []), *self._vdi_keys()],
            "sockets": [*self._unix_sockets(), *self._listening()],
            "processes": [f"pid {pid}: {line}" for pid, line in self._processes.items()],
            "mounts": self._mounts([*names, *mapped]),
            "loop": list(devices["loop"].values()),
            "nbd": list(devices["nbd"].values()),
            "dm": list(mapped.values()),
            "iscsi": [*devices["iscsi"].values(), *self._sessions()],
            "files": self._beside(),
        }
        return {"epoch": epoch, "held": {kind: sorted(lines) for kind, lines in held.items()}}

    # processes, and their open files

    def _find_processes(self) -> Iterator[tuple[int, str]]:
        """(pid, command line) of this host's processes that belong to the case, less this one."""
        here = _link(self.proc / "self/ns/net")
        for entry in self.proc.iterdir():
            if not entry.name.isdecimal() or int(entry.name) == os.getpid():
                continue
            # One machine may be several hosts, each with a network namespace.
            if _link(entry / "ns/net") != here:
                continue
            command = _read(entry / "cmdline").replace("\0", " ").strip()
            if command and (self._names(command) or any(self._open_files(entry))):
                yield int(entry.name), command[:_COMMAND]

    def _names(self, text: str) -> bool:
        return self.image in text or f"{self.folder}/" in text or text.endswith(self.folder)

    def _open_files(self, process: Path) -> Iterator[tuple[str, str]]:
        """(number of the descriptor, path) of image and lease where the process has them open."""
        with contextlib.suppress(OSError):
            for number in os.listdir(process / "fd"):
                with contextlib.suppress(OSError):
                    found = os.stat(process / "fd" / number)
                    for path, identity in self._files.items():
                        if identity == (found.st_dev, found.st_ino):
                            yield number, path

    def _locks(self) -> list[str]:
        """Locks on image and lease: of this host's processes, and of unknown owners."""
        found: list[str] = []
        explained = set()
        for pid in self._processes:
            for number, path in self._open_files(self.proc / str(pid)):
                for line in _read(self.proc / str(pid) / "fdinfo" / number).splitlines():
                    if line.startswith("lock:"):
                        explained.add(path)
                        found.append(f"pid {pid}: {_lock(line)} of {os.path.basename(path)}")
        for path, identity in self._files.items():
            if identity is not None and path not in explained:
                found += _foreign_lock(path)
        return found

    def _lease(self) -> tuple[int, list[str]]:
        """The newest epoch and the owner of the lease, as the epoch record has them."""
        if not os.path.lexists(self.lease):
            return 0, []
        record = EpochRecord(Path(self.lease))
        try:
            epoch, holder = record.read()
        finally:
            record.close()
        if holder is None:
            return epoch, []
        return epoch, [f"{holder.get('host')}: pid {holder.get('pid')}, epoch {epoch}"]

    def _vdi_keys(self) -> list[str]:
        """The keys that VDI operations have left on the image, by the host that each is of."""
        with key_file(self.image) as file:
            return [f"{key.owner.host}: {key}" for key in file.read().values()]

    # sockets

    def _unix_sockets(self) -> Iterator[str]:
        """Bound sockets, and files of sockets without an owner."""
        bound = {
            line.split(None, 7)[7]
            for line in _read(self.proc / "self/net/unix").splitlines()[1:]
            if len(line.split(None, 7)) == 8
        }
        yield from (f"{path} (bound)" for path in bound if path.startswith(f"{self.folder}/"))
        for entry in _listed(Path(self.folder)):
            if entry.is_socket():
                yield f"{entry} (file)"

    def _listening(self) -> list[str]:
        ports = sorted({own for own, _, state in self._tcp() if state == _LISTENS})
        return [f"TCP port {port} listens" for port in ports if port in self.ports]

    def _tcp(self) -> Iterator[tuple[int, int, str]]:
        """(port here, port there, state) of each TCP socket."""
        for name in ("tcp", "tcp6"):
            for line in _read(self.proc / "self/net" / name).splitlines()[1:]:
                _, own, other, state, *_ = line.split()
                yield int(own.rpartition(":")[2], 16), int(other.rpartition(":")[2], 16), state

    # devices: name under /dev -> line

    def _loop(self) -> dict[str, str]:
        found = {}
        for entry in self._blocks("loop"):
            file = _read(entry / "loop/backing_file").strip()
            if os.path.basename(self.image) in file:
                found[entry.name] = f"/dev/{entry.name} over {file}"
        return found

    def _nbd(self) -> dict[str, str]:
        here = _link(self.proc / "self/ns/net")
        found = {}
        for entry in self._blocks("nbd"):
            pid = _read(entry / "pid").strip()
            if pid and _link(self.proc / pid / "ns/net") in (here, ""):
                found[entry.name] = f"/dev/{entry.name} connected by pid {pid}"
        return found

    def _iscsi_disks(self) -> dict[str, str]:
        """The kernel initiator's sessions with the lab's target, and their disks."""
        found = {}
        for session in _listed(self.sys / "class/iscsi_session"):
            if _read(session / "targetname").strip() != self.target[0]:
                continue
            found[session.name] = f"{session.name} of {self.target[0]}"
            for disk in session.glob("device/target*/*/block/*"):
                found[disk.name] = f"/dev/{disk.name} of {session.name}"
        return found

    def _sessions(self) -> list[str]:
        """This host's sessions with a target, and logins of others at the target that runs here."""
        port = self.target[1]
        open_now = [
            f"session with port {port}" if other == port else f"{ELSEWHERE}login at port {port}"
            for own, other, state in self._tcp()
            if state == _ESTABLISHED and port in (own, other)
        ]
        return [f"{line} ({number})" for number, line in enumerate(sorted(open_now), 1)]

    def _mapped(self, beneath: list[str]) -> dict[str, str]:
        """Device-mapper devices over any of those devices, or named after the image."""
        found: dict[str, str] = {}
        entries = list(self._blocks("dm-"))
        for _ in entries:
            for entry in entries:
                name = _read(entry / "dm/name").strip()
                over = {slave.name for slave in _listed(entry / "slaves")}
                if over & {*beneath, *found} or os.path.basename(self.image) in name:
                    found[entry.name] = f"/dev/mapper/{name}"
        return found

    def _blocks(self, prefix: str) -> Iterator[Path]:
        return (e for e in _listed(self.sys / "block") if e.name.startswith(prefix))

    # the file system

    def _mounts(self, devices: list[str]) -> list[str]:
        """Mounts of the image, of a device over it, or inside the run's directory."""
        # A partition's name begins with its disk's.
        sources = (*(f"/dev/{name}" for name in devices), self.image)
        found = []
        for line in _read(self.proc / "self/mountinfo").splitlines():
            before, _, after = line.partition(" - ")
            root, point = before.split()[3:5]
            source = after.split()[1]
            bound = os.path.basename(self.image) in root
            named = point.startswith((f"{self.folder}/", self.image))
            if bound or named or source.startswith(sources):
                found.append(f"{source} on {point}")
        return found

    def _beside(self) -> list[str]:
        """Files of the image's directory whose name contains the image's."""
        folder, name = os.path.split(self.image)
        return [one for one in os.listdir(folder) if name in one]


def _lock(line: str) -> str:
    """`lock:	1: OFDLCK ADVISORY  WRITE 77 fe:00:42 300 301` in words."""
    words = line.split()
    kind, access, first, last = words[2], words[4].lower(), words[-2], words[-1]
    return f"{access} lock ({kind}) on bytes {first} to {last}"


def _foreign_lock(path: str) -> list[str]:
    """A lock that conflicts with ours, of no process of this host: an NFS server reports those."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, first, length, _ = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
    except OSError:
        return []  # a file system without such locks
    finally:
        os.close(fd)
    if kind == fcntl.F_UNLCK:
        return []
    access = "write" if kind == fcntl.F_WRLCK else "read"
    until = "EOF" if not length else str(first + length - 1)
    where = os.path.basename(path)
    return [f"{ELSEWHERE}{access} lock on bytes {first} to {until} of {where}"]


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _read(path: Path) -> str:
    """The text of a file of /proc or /sys; empty where it cannot be read."""
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
