"""up, down and status of the local hosts, for the machine that they run on."""

import hashlib
import json
import os
import select
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import vhdtool
from vhdtool.errors import LabError
from vhdtool.lab.localhosts import processes as procs
from vhdtool.lab.localhosts import ssh_files as sshfiles
from vhdtool.lab.localhosts.options import HOSTS, HostOptions, inside_config
from vhdtool.lab.localhosts.processes import Process
from vhdtool.lab.localhosts.state import MARK, State

HOSTS_MARK = "VHDLAB_HOSTS"
"""In the environment of the lab's own processes; its value is the state directory."""
_TOOLS = ("unshare", "nsenter", "ip", "nc", "ssh", "ssh-keygen", "/usr/sbin/sshd")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Status:
    """State: running (both hosts answer), down, or stale (left by a lab that no longer works)."""

    state: str
    pid: int | None
    detail: str


class Options(Protocol):
    """Options of the hosts; hosts with equal ones can be used again."""

    def as_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Kind:
    """Hosts of one kind: their names and addresses, and the module that starts and holds them.

    `prepare` makes the keys and files of the hosts; `inside` returns the configuration of the
    module. Both get the options and the state directory.
    """

    name: str
    hosts: Mapping[str, str]
    supervisor: str
    prepare: Callable[[Any, Path], None]
    inside: Callable[[Any, Path], dict[str, Any]]
    ready_seconds: float = 15.0
    ssh_seconds: float = 1.0
    tools: tuple[str, ...] = _TOOLS


def _prepare(options: HostOptions, directory: Path) -> None:
    options.cache_source.mkdir(mode=0o700, parents=True, exist_ok=True)
    sshfiles.make_keys(directory, HOSTS)


NAMESPACES = Kind(
    "local hosts", HOSTS, "vhdtool.lab.localhosts.supervisor", _prepare, inside_config
)


class LocalHosts:
    """The hosts of one state directory. `progress` gets each line for the user."""

    def __init__(self, state_directory: Path, progress: Progress, kind: Kind = NAMESPACES) -> None:
        self.state = State(state_directory)
        self.kind = kind
        self.progress = progress
        digest = hashlib.sha256(os.fsencode(self.state.directory)).hexdigest()[:8]
        self.control = Path("/run") / f"vhdlab-{digest}"

    def up(self, options: Options, holder: Process | None = None, mark: str = "") -> bool:
        """Make the hosts; False when they were running already. Raises LabError, UsageError."""
        self.need_root_and_tools()
        with self.state.locked() as lock:
            if holder is not None:
                self._claim(holder, mark)
            status = self._status()
            if status.state == "running":
                process, record = self.state.supervisor()
                assert process is not None
                if record.get("options") == options.as_dict():
                    sshfiles.make_control_directory(self.state.directory, self.control)
                    self._write_client_config(process.pid)
                    return False
                self.progress("other options than those of the running hosts: making them anew")
            elif status.state == "stale":
                self.progress(
                    f"found a stale lab of an earlier run ({status.detail}): cleaning it up"
                )
            self._remove(forget_holder=False)
            self._make(options, lock)
            return True

    def claim(self, holder: Process, mark: str) -> None:
        """Make `holder` the one run that may use the hosts. Raises LabError when another does.

        Ends processes that a killed run has left on the controller.
        """
        with self.state.locked():
            self._claim(holder, mark)

    def down(self, holder: Process | None = None, force: bool = False) -> bool:
        """End the hosts with all their processes and files; False when there were none.

        Raises LabError when a live run other than `holder` uses them and not `force`.
        """
        if not self.state.directory.is_dir():
            return False
        with self.state.locked():
            user = self.state.holder()
            if user is not None and user.process.alive() and user.process != holder and not force:
                raise LabError(f"a run (pid {user.process.pid}) is using the hosts; stop it first")
            process, _ = self.state.supervisor()
            self._remove(forget_holder=True)
            return process is not None

    def status(self) -> Status:
        if not self.state.directory.is_dir():
            return Status("down", None, "no hosts")
        with self.state.locked():
            return self._status()

    # -- internals; the lock is held ---------------------------------------------------

    def _claim(self, holder: Process, mark: str) -> None:
        before = self.state.holder()
        self.state.claim(holder, mark)
        if before is not None and before.mark != mark:
            self._end_marked(before.mark)

    def _end_marked(self, mark: str) -> None:
        """End a dead run's processes outside the hosts: its runner, its ssh masters."""
        if mark:
            procs.end_marked(f"{MARK}={mark}")

    def _status(self) -> Status:
        process, _ = self.state.supervisor()
        if process is None:
            return Status("down", None, "no hosts")
        if not process.alive():
            return Status("stale", process.pid, "its processes are gone")
        hosts = self.kind.hosts
        silent = [name for name in hosts if not self._answers(process, hosts[name])]
        if silent:
            return Status("stale", process.pid, f"{' and '.join(silent)} do not answer")
        return Status("running", process.pid, f"{', '.join(hosts)} answer")

    def _answers(self, process: Process, address: str) -> bool:
        """Whether an sshd listens there; tries for some time, because it may be starting."""
        deadline = time.monotonic() + self.kind.ssh_seconds
        while time.monotonic() < deadline:
            command = ["nsenter", f"--net=/proc/{process.pid}/ns/net", "nc", "-z", "-w", "1"]
            if _succeeds([*command, address, "22"]):
                return True
            if not process.alive():
                return False
            time.sleep(0.05)
        return False

    def _make(self, options: Options, lock: int) -> None:
        directory = self.state.directory
        self.kind.prepare(options, directory)
        sshfiles.make_control_directory(directory, self.control)
        ready, ready_end = os.pipe()
        child = os.fork()
        if child == 0:
            self._become_outer(options, lock, ready_end)
        os.close(ready_end)
        answer = _read_line(ready, self.kind.ready_seconds)
        os.close(ready)
        if answer != "ready":
            reason = answer.removeprefix("failed: ") or "no answer"
            log = _last_lines(directory / "hosts.log")
            self._remove(forget_holder=False)
            raise LabError(f"the {self.kind.name} did not start: {reason}{log}")
        self._write_client_config(child)

    def _become_outer(self, options: Options, lock: int, ready: int) -> NoReturn:
        """In the forked child: records its pid, then becomes the lab's outer process.

        The child itself writes the record, before anything exists that would have to be removed:
        a kill of its parent at any moment leaves nothing unknown. Until the exec the child holds
        the lock too.
        """
        try:
            os.setsid()
            me = Process.current()
            record = {"pid": me.pid, "start": me.start, "options": options.as_dict()}
            self.state.write("supervisor.json", record)
            lifeline, lifeline_end = os.pipe()
            for inherited in (lifeline, lifeline_end, ready):
                os.set_inheritable(inherited, True)
            os.set_inheritable(lock, False)
            null = os.open("/dev/null", os.O_RDONLY)
            log = os.open(self.state.path("hosts.log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for target, source in enumerate((null, log, log)):
                os.dup2(source, target)
            environment = {k: v for k, v in os.environ.items() if k != MARK}
            environment[HOSTS_MARK] = str(self.state.directory)
            environment["PYTHONPATH"] = str(Path(vhdtool.__file__).parent.parent)
            command = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount"]
            command += ["--mount-proc", sys.executable, "-m", self.kind.supervisor]
            config = json.dumps(self.kind.inside(options, self.state.directory), default=str)
            command += [config, str(lifeline), str(lifeline_end), str(ready)]
            os.chdir("/")
            os.execvpe(command[0], command, environment)
        except OSError as error:
            os.write(ready, f"failed: {error}\n".encode())
        finally:
            os._exit(127)

    def _write_client_config(self, pid: int) -> None:
        sshfiles.write_client_config(self.state.directory, pid, self.control, self.kind.hosts)

    def need_root_and_tools(self) -> None:
        """Raises LabError."""
        if os.geteuid() != 0:
            raise LabError(f"the {self.kind.name} need root: they live in namespaces")
        missing = [tool for tool in self.kind.tools if shutil.which(tool) is None]
        if missing:
            raise LabError(f"missing: {', '.join(missing)}; `make setup` installs them")

    def _remove(self, forget_holder: bool) -> None:
        """End everything that the record names; remove the record last."""
        user = self.state.holder()
        outer, _ = self.state.supervisor()
        if user is not None and forget_holder:
            self._end_marked(user.mark)
        sshfiles.close_masters(self.state.directory, self.control, self.kind.hosts)
        if outer is not None and outer.alive():
            network = procs.network_of(outer.pid)
            inside = procs.descendants(outer.pid)
            procs.end(inside[:1])  # pid 1 of the lab; `outer` reaps it and ends
            procs.wait_gone([outer], 0.5)
            procs.end([outer, *inside])
            if network is not None and network != procs.network_of(os.getpid()):
                procs.end(procs.in_network(network))
        # When the outer process was killed, the others may not have ended yet.
        procs.end_marked(f"{HOSTS_MARK}={self.state.directory}")
        self.state.clear(forget_holder)


def _succeeds(command: list[str]) -> bool:
    null = os.open("/dev/null", os.O_RDWR)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)]
        pid = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        os.close(null)


def _read_line(descriptor: int, seconds: float) -> str:
    """One line from a pipe; "" when it ended or nothing came in time."""
    text = b""
    deadline = time.monotonic() + seconds
    while not text.endswith(b"\n"):
        rest = deadline - time.monotonic()
        if rest <= 0 or not select.select([descriptor], [], [], rest)[0]:
            break
        piece = os.read(descriptor, 4096)
        if not piece:
            break
        text += piece
    return text.decode(errors="replace").strip()


def _last_lines(log: Path, count: int = 3) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()[-count:]
    except OSError:
        return ""
    return f" ({' / '.join(lines)})" if lines else ""
