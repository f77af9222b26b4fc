"""What blktap's real tap-ctl sends and says, as facts: how they are recorded, and repeated.

    python -m tests.interop.tapctl_facts TAP_CTL

records facts/tapctl_session.json (a session with the real tapdisk: exit codes, output) and
facts/tapctl_bytes.json (what the tool sends, byte by byte, and what it makes of given answers).
TAP_CTL is blktap's, built with a libexecdir where its own tapdisk is. Needs root: both know only
/run/blktap-control, so a directory of our own is mounted there, for them alone. Facts name no
process and no place: {P0} is the first tapdisk, {D} where the images are.
"""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.support.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
FACTS = Path(__file__).parent / "facts"
SIZE = 544
PLACE = Path("/run/blktap-control")
SESSION = Path(__file__).parent / "facts" / "session.txt"
Run = Callable[[list[str], bytes], tuple[int, str, str]]
"""Runs `tap-ctl` with these words and standard input: (code, stdout, stderr)."""


@dataclass
class Fact:
    """One command of a session."""

    words: str
    code: int
    out: list[str]
    err: str
    """The last line; the real tool says no more than the errno's name."""


class Scene:
    """Commands one after the other, in one control directory."""

    def __init__(self, run: Run, run_dir: Path, images: Path) -> None:
        self.run, self.run_dir, self.images = run, run_dir, images
        self.pids: list[str] = []

    def names(self) -> dict[str, str]:
        return {"D": str(self.images), **{f"P{at}": pid for at, pid in enumerate(self.pids)}}

    def __call__(self, line: str) -> Fact:
        words, stdin = shlex.split(line), b""
        if words[-1].startswith("<"):
            stdin = b"k" * int(words.pop()[1:])
        real = [word.format(**self.names()) for word in words]
        code, out, err = self.run(real, stdin)
        if words == ["spawn"] and code == 0:
            self.pids.append(out.strip())
        if words[0] == "create" and code == 0:
            self.pids += [pid for pid in self._sockets() if pid not in self.pids]
        if (words[0], code == 0) in (("detach", True), ("destroy", True), ("create", False)):
            self._settle()
        said = err.strip().splitlines()
        return Fact(line, code, [self._general(one) for one in out.splitlines()],
                    self._general(said[-1]) if said else "")  # fmt: skip

    def _sockets(self) -> list[str]:
        names = sorted(os.listdir(self.run_dir)) if self.run_dir.exists() else []
        return [match[1] for name in names if (match := re.fullmatch(r"ctl(\d+)", name))]

    def _settle(self) -> None:
        """A tapdisk without a minor ends, soon after it has answered."""
        wait_for(lambda: not any(self._leaving(p) for p in self._sockets()))

    def _leaving(self, pid: str) -> bool:
        _, out, _ = self.run(["list", "-p", pid], b"")
        return out.strip() in ("", f"pid={pid}")

    def _general(self, line: str) -> str:
        line = line.replace(str(self.images), "{D}").replace(str(self.run_dir), str(PLACE))
        for at, pid in enumerate(self.pids):
            line = re.sub(rf"(?<![\w/.]){pid}\b", f"{{P{at}}}", line)
        return line


def session() -> list[str]:
    """The commands of facts/session.txt; a line that begins with # says what they are for."""
    lines = SESSION.read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def make_images(folder: Path) -> None:
    """What the session's commands name."""
    sys.path.insert(0, str(ROOT))
    from vhdtool.image.create.differencing import snapshot
    from vhdtool.image.create.empty import create_dynamic

    for name, mib in (("a", 64), ("b", 64), ("c", 128)):
        create_dynamic(folder / f"{name}.vhd", mib << 20)
    snapshot(folder / "a.vhd", folder / "child.vhd")
    (folder / "r.raw").write_bytes(bytes(8 << 20))
    (folder / "zero.vhd").write_bytes(bytes(8192))
    (folder / "log").write_bytes(bytes(1 << 16))


# bytes


@dataclass
class Exchange:
    """A command, the messages that answer it (one a connection), and what comes of them."""

    words: list[str]
    stdin: str
    answers: list[list[str]]
    sent: list[str]
    code: int
    out: str


def message(kind: int, cookie: int = 0, body: bytes = b"") -> bytes:
    """One message, written without our own code."""
    head = kind.to_bytes(2, sys.byteorder) + cookie.to_bytes(2, sys.byteorder)
    return (head + bytes(4) + body).ljust(SIZE, b"\0")


def _integers(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, sys.byteorder, signed=True) for value in values)


PID, LISTED, FINE = 4711, 20, _integers(0)
_ENTRY = _integers(1, 3, 0x2A) + b"vhd:/srv/d.vhd"
_LAST = message(LISTED, 0xFFFF, _integers(0, -1, 0))
_STATS = b'{ "name": "x" }'
_WHO = f"-p {PID} -m 3"
_OPENED = message(8, 3, (2048).to_bytes(8, sys.byteorder) + _integers(512, 0))


def _error(number: int) -> bytes:
    return message(1, 3, _integers(number))


EXCHANGES: list[tuple[str, bytes, list[list[bytes]]]] = [
    (f"list -p {PID}", b"", [[message(4, 0, _integers(PID))],
                             [message(LISTED, 0xFFFF, _ENTRY), _LAST]]),
    (f"list -p {PID} -f /srv/d.vhd -t vhd -m 3", b"", [[message(4, 0, _integers(PID))],
                                                       [message(LISTED, 0xFFFF, _ENTRY), _LAST]]),
    ("list", b"", [[message(4, 0, _integers(PID))], [_LAST]]),
    ("list", b"", [[message(4, 0, _integers(PID))],
                   [message(LISTED, 0xFFFF, _integers(2, 0, 0) + b"aio:/srv/a b"),
                    message(LISTED, 0xFFFF, _integers(1, 7, 2)), _LAST]]),
    (f"list -p {PID}", b"", [[message(4, 0, _integers(PID))], [_error(22)]]),
    (f"attach {_WHO}", b"", [[message(6, 3, FINE)]]),
    (f"attach {_WHO}", b"", [[_error(17)]]),
    (f"detach {_WHO}", b"", [[message(16, 3, FINE)]]),
    (f"detach {_WHO}", b"", [[_error(16)]]),
    (f"pause {_WHO}", b"", [[message(10, 3, FINE)]]),
    (f"pause {_WHO}", b"", [[_error(19)]]),
    (f"pause {_WHO}", b"", [[]]),
    (f"unpause {_WHO}", b"", [[message(12, 3, FINE)]]),
    (f"unpause {_WHO} -a vhd:/srv/e.vhd", b"", [[message(12, 3, FINE)]]),
    (f"unpause {_WHO} -a vhd:/srv/e.vhd -2 aio:/srv/m", b"", [[_error(22)]]),
    (f"unpause {_WHO} -c /srv/log", b"", [[message(12, 3, FINE)]]),
    (f"unpause {_WHO}", b"", [[_error(124)]]),
    (f"close {_WHO}", b"", [[message(14, 3, FINE)]]),
    (f"close {_WHO} -t 120", b"", [[message(14, 3, FINE)]]),
    (f"close {_WHO} -t 120 -f", b"", [[message(14, 3, FINE)]]),
    (f"close {_WHO}", b"", [[_error(19)]]),
    (f"open {_WHO} -a vhd:/srv/d.vhd", b"", [[_OPENED]]),
    (f"open {_WHO} -a aio:/srv/d -R -D -t 90", b"", [[_OPENED]]),
    (f"open {_WHO} -a vhd:/srv/d.vhd -r -s -2 vhd:/srv/e.vhd -e 2", b"", [[_error(2)]]),
    (f"open {_WHO} -a vhd:/srv/d.vhd -C /srv/log", b"", [[_OPENED]]),
    (f"open {_WHO} -a vhd:/srv/d.vhd -E", b"k" * 32, [[_error(22)]]),
    (f"open {_WHO} -a vhd:/srv/d.vhd -E", b"k" * 33, []),
    (f"open {_WHO} -a vhd:{'x' * 300}", b"", []),
    (f"stats {_WHO}", b"", [[message(22, 3, bytes(8) + len(_STATS).to_bytes(8, sys.byteorder))
                             + _STATS]]),
    ("pause -p -5 -m 0", b"", []),
    ("close -p 4712 -m 0", b"", []),
]  # fmt: skip


class FakeTapdisk:
    """Answers one connection after the other with what it was given; keeps what it was sent."""

    def __init__(self, place: Path, answers: list[list[bytes]]) -> None:
        self.sent: list[bytes] = []
        self._answers = answers
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(place))
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for answer in self._answers:
            client, _ = self._listener.accept()
            with client:
                client.settimeout(10)
                self.sent.append(self._received(client))
                for one in answer:
                    client.sendall(one)

    def _received(self, client: socket.socket) -> bytes:
        """The message, and what its flags promise behind it: a log's path, a key."""
        data = self._exactly(client, SIZE)
        flags = int.from_bytes(data[8:12], sys.byteorder) if data[0] in (7, 11) else 0
        behind = self._exactly(client, 256) if flags & 0x10 else b""
        if flags & 0x400:
            size = self._exactly(client, 1)
            behind += size + self._exactly(client, size[0])
        return data + behind

    def _exactly(self, client: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size and (part := client.recv(size - len(data))):
            data += part
        return data

    def stop(self) -> list[bytes]:
        self._thread.join(5)
        self._listener.close()
        return self.sent


def exchange(
    run: Run, run_dir: Path, line: str, stdin: bytes, answers: list[list[bytes]]
) -> Exchange:
    """Runs one command against a tapdisk that answers so."""
    place = run_dir / f"ctl{PID}"
    place.unlink(missing_ok=True)
    fake = FakeTapdisk(place, answers)
    code, out, _ = run(shlex.split(line), stdin)
    sent = [_short(_path_only(one)) for one in fake.stop()]
    told = [[_short(one) for one in part] for part in answers]
    return Exchange(shlex.split(line), stdin.hex(), told, sent, code, out)


def _path_only(sent: bytes) -> bytes:
    """The path of a log stands in 256 bytes; what the tool leaves behind its end is chance."""
    if len(sent) != SIZE + 256:
        return sent
    return sent[: sent.index(0, SIZE)].ljust(SIZE + 256, b"\0")


def _short(data: bytes) -> str:
    """Hexadecimal; [n] stands for n zero bytes."""
    parts = re.split(rb"(\0{8,})", data)
    return "".join(f"[{len(one)}]" if one[:8] == bytes(8) else one.hex() for one in parts)


def whole(short: str) -> bytes:
    """The bytes that `_short` wrote down."""
    parts = re.split(r"\[(\d+)\]", short)
    return b"".join(
        bytes(int(one)) if at % 2 else bytes.fromhex(one) for at, one in enumerate(parts)
    )


def binary(path: Path) -> Run:
    """The real tool, which must already see a control directory of our own."""

    def run(words: list[str], stdin: bytes) -> tuple[int, str, str]:
        done = subprocess.run(
            [path, *words], input=stdin, capture_output=True, timeout=90, check=False
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    return run


def load(name: str) -> Iterator[dict]:  # type: ignore[type-arg]
    yield from json.loads((FACTS / name).read_text())["facts"]


def record(tool: Path, images: Path) -> None:
    """Both files. Runs where /run/blktap-control is ours."""
    make_images(images)
    scene = Scene(binary(tool), PLACE, images)
    _write("tapctl_session.json", [asdict(scene(line)) for line in session()])
    for name in os.listdir(PLACE):
        if name.startswith("ctl"):
            (PLACE / name).unlink()
    told = [asdict(exchange(binary(tool), PLACE, *one)) for one in EXCHANGES]
    _write("tapctl_bytes.json", told)


def _write(name: str, facts: list[dict[str, object]]) -> None:
    lines = ",\n".join(json.dumps(fact) for fact in facts)
    (FACTS / name).write_text(
        '{"of": "tap-ctl of xapi-project/blktap", "facts": [\n' + lines + "\n]}\n"
    )


def alone(words: list[str], extra: str = "") -> list[str]:
    """A command line that runs `words` where /run/blktap-control and /dev/shm are its own."""
    script = f"mkdir -p {PLACE} && mount -t tmpfs none {PLACE} && mount -t tmpfs none /dev/shm"
    return ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c",
            f'{script} && {extra}exec "$@"', "sh", *words]  # fmt: skip


if __name__ == "__main__":
    import tempfile

    if sys.argv[1] == "--inside":
        record(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            words = [sys.executable, __file__, "--inside", sys.argv[1], folder]
            sys.exit(subprocess.run(alone(words), check=False).returncode)
