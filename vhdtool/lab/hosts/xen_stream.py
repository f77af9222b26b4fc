"""The stream of `xl migrate` over TCP: a receiver, and the relay that holds the guest back.

    xen_stream receive ADDRESS PORT PEER          on the destination
    xen_stream relay CONTROL ADDRESS PORT         as `xl migrate -s`, on the source

`xl migrate` runs the relay in place of ssh. When all memory is at the destination, the receiver
there says so and waits for an answer. The relay keeps this message back: the guest is suspended at
the source then, its disk is attached at the destination, and neither does I/O. The runner decides
over the Unix socket CONTROL:

    {"event": "ready", "stopped": SECONDS, "mono": SECONDS}     to the runner
    go | refuse                                                 from the runner
    {"event": "unpaused", "status": N, "mono": SECONDS}         to the runner

After `refuse`, or when the runner is gone, the receiver destroys its copy and the source resumes:
the relay ends the receiver's input and reads until it ends. A cut connection would leave a paused
domain behind. The relay never outlives xl by more than LINGER. Standard library only: hosts run it.

Source: tools/xl/xl_migrate.c of Xen 4.17 (messages and their order).
"""

import contextlib
import json
import os
import queue
import select
import socket
import subprocess
import sys
import threading
import time

READY = b"domain received, ready to unpause\0"
REPORT = b"my copy unpause results are as follows\0"
"""The NUL belongs to a message; after a report there is a byte with the status."""
CONNECT_SECONDS = 60.0
"""For a receiver, or a runner, that starts at the same time on a slow machine."""
HOLD_SECONDS = 300.0
DEAD_PEER_MS = 20_000
LINGER = 60.0
CHUNK = 1 << 16


class Stopped:
    """Records when a domain of this host was last stopped: xenstored says that one was."""

    def __init__(self) -> None:
        self.mono = time.monotonic()
        words = ["setpriv", "--pdeathsig", "KILL", "--", "xenstore-watch", "@releaseDomain"]
        self._watch = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        assert self._watch.stdout is not None
        for _ in self._watch.stdout:
            self.mono = time.monotonic()

    def close(self) -> None:
        self._watch.kill()
        self._watch.wait()


class Runner:
    """The runner's end of CONTROL: one client, which gets events and sends decisions."""

    def __init__(self, path: str) -> None:
        self._decisions: queue.Queue[str] = queue.Queue()
        self.refused = threading.Event()
        """Set at once when the runner refuses, or is gone."""
        listener = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listener.bind(path)
        listener.listen(1)
        listener.settimeout(CONNECT_SECONDS)
        try:
            self._client, _ = listener.accept()
        finally:
            listener.close()
            os.unlink(path)
        self._client.settimeout(None)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            for line in self._client.makefile():
                if line.strip() == "go":
                    self._decisions.put("go")
                elif line.strip() == "refuse":
                    break
        self.refuse()

    def refuse(self) -> None:
        """Decide for a runner that is gone, or where xl is; after a go it changes nothing."""
        self.refused.set()
        self._decisions.put("refuse")

    def tell(self, event: str, **fields: object) -> None:
        with contextlib.suppress(OSError):
            message = {"event": event, "mono": time.monotonic(), **fields}
            self._client.sendall(json.dumps(message).encode() + b"\n")

    def decision(self, seconds: float) -> str:
        """go or refuse; refuse when none comes in time."""
        try:
            return self._decisions.get(timeout=seconds)
        except queue.Empty:
            return "refuse"


def relay(control: str, address: str, port: int) -> int:
    """Relay between xl, on the standard streams, and the receiver; the exit status."""
    stopped = Stopped()
    try:
        runner = Runner(control)
        receiver = _connect(address, port)
        threading.Thread(target=_send_all, args=(receiver, runner), daemon=True).start()
        return _pass_answers(receiver, runner, stopped)
    except OSError as error:
        print(f"xen_stream: {error}", file=sys.stderr)
        return 1
    finally:
        stopped.close()


def _connect(address: str, port: int) -> socket.socket:
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            found = socket.create_connection((address, port), timeout=5)
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    found.settimeout(None)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER_MS)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5)):
        found.setsockopt(socket.IPPROTO_TCP, option, seconds)
    return found


def _send_all(receiver: socket.socket, runner: Runner) -> None:
    """From xl to the receiver, to the end of xl's output, which ends a hold."""
    with contextlib.suppress(OSError):
        while data := os.read(0, CHUNK):
            receiver.sendall(data)
        receiver.shutdown(socket.SHUT_WR)
        receiver.settimeout(LINGER)
    runner.refuse()


def _pass_answers(receiver: socket.socket, runner: Runner, stopped: Stopped) -> int:
    """From the receiver to xl, holding READY back until the runner has decided."""
    pending, told, finished = b"", False, False
    # Once it is told, the guest may run at the destination: nothing can be refused any more.
    while data := _receive(receiver, None if told else runner):
        pending += data
        if not told and READY in pending:
            before, _, after = pending.partition(READY)
            _to_xl(before)
            runner.tell("ready", stopped=stopped.mono)
            if runner.decision(HOLD_SECONDS) != "go":
                return _refuse(receiver)
            _to_xl(READY + after)
            pending, told = b"", True
        elif told and REPORT in pending:
            if pending.endswith(REPORT):
                pending += _receive(receiver, None)
            _to_xl(pending)
            status = pending.partition(REPORT)[2]
            runner.tell("unpaused", status=status[0] if status else 255)
            pending, finished = b"", bool(status)
        else:
            keep = _begun(pending, REPORT if told else READY)
            _to_xl(pending[: len(pending) - keep])
            pending = pending[len(pending) - keep :]
    _to_xl(pending)
    return 0 if finished else 1


def _begun(data: bytes, message: bytes) -> int:
    """How many bytes at the end of `data` may be the start of `message`."""
    most = min(len(data), len(message) - 1)
    return next((n for n in range(most, 0, -1) if message.startswith(data[-n:])), 0)


def _receive(receiver: socket.socket, runner: Runner | None) -> bytes:
    """The next bytes; b"" at the end. A refusal ends it too, as long as nothing was held."""
    while runner is not None and not runner.refused.is_set():
        if select.select([receiver], [], [], 0.2)[0]:
            return receiver.recv(CHUNK)
    if runner is None:
        return receiver.recv(CHUNK)
    _refuse(receiver)
    return b""


def _refuse(receiver: socket.socket) -> int:
    """End the receiver's input, and wait until it has destroyed its copy and ended."""
    with contextlib.suppress(OSError):
        receiver.shutdown(socket.SHUT_WR)
        receiver.settimeout(LINGER)
        while receiver.recv(CHUNK):
            pass
    return 1


def _to_xl(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def receive(address: str, port: int, peer: str) -> None:
    """Give the first connection from `peer` to `xl migrate-receive`, which this becomes."""
    with socket.create_server((address, port)) as listener:
        listener.settimeout(CONNECT_SECONDS)
        while True:
            client, found = listener.accept()
            if found[0] == peer:
                break
            client.close()
    client.settimeout(None)
    for descriptor in (0, 1):
        os.dup2(client.fileno(), descriptor)
    os.execvp("xl", ["xl", "migrate-receive"])


def main(words: list[str]) -> int:
    if len(words) >= 4 and words[0] == "relay":
        # xl adds a host and a command, as ssh would need them.
        return relay(words[1], words[2], int(words[3]))
    if len(words) == 4 and words[0] == "receive":
        receive(words[1], int(words[2]), words[3])
    print("xen_stream: relay CONTROL ADDRESS PORT, or receive ADDRESS PORT PEER", file=sys.stderr)
    return 2


if __name__ == "__main__":
    status = main(sys.argv[1:])
    # The thread that reads from xl may wait for it.
    sys.stderr.flush()
    os._exit(status)
