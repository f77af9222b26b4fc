"""All cases of a run: configuration in, `runs/<id>/` out, a line of progress for each step."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from vhdtool.errors import LabError, UsageError, VhdtoolError
from vhdtool.handover.guest.snapshot import accelerator, ensure_snapshot
from vhdtool.handover.hosts import Host, HostConfig
from vhdtool.handover.qemu import Loop, Machine
from vhdtool.handover.record import Record
from vhdtool.handover.runner import CasePlan, CaseRun, Side
from vhdtool.handover.strategies import STRATEGIES, Strategy, named

Say = Callable[[str], None]
Judge = Callable[[Path], dict[str, Any]]
MIB = 1 << 20
ATTEMPTS = 2
LIVE_CASES = (("overlap", False), ("overlap", True), ("activate", True))
"""Where testinfra looks at the hosts in the middle of a case: one of each verdict."""


@dataclass(frozen=True)
class LabConfig:
    """What the role `migration` (or a caller) asks for; sizes in bytes."""

    run_dir: Path
    hosts: tuple[HostConfig, HostConfig]
    shared_dir: str
    kernel: str
    initrd: str
    ssh_config: Path | None = None
    storage: str = "a directory"
    strategies: tuple[str, ...] = ("all",)
    guard: str = "default"
    seed: int = 1
    repeats: int = 1
    image_bytes: int = 2048 * MIB
    block_bytes: int = 2 * MIB
    profile: str = "paced"
    pace_us: int = 4000
    hypervisor: str = "kvm"
    accelerator: str = "auto"
    migration_port: int = 4444
    live_tests: Path | None = None

    @classmethod
    def load(cls, path: Path) -> "LabConfig":
        """Reads the JSON file. Raises UsageError that names the key that is wrong."""
        try:
            raw = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: no configuration of a lab: {error}") from error
        try:
            raw.pop("keep", None)
            guest, load = raw.pop("guest"), raw.pop("load", {})
            hosts = tuple(HostConfig(**host) for host in raw.pop("hosts"))
            for key in ("ssh_config", "live_tests"):
                raw[key] = Path(raw[key]) if raw.get(key) else None
            config = cls(
                run_dir=Path(raw.pop("run_dir")),
                hosts=hosts,  # type: ignore[arg-type]
                strategies=tuple(raw.pop("strategies", ["all"])),
                kernel=guest["kernel"],
                initrd=guest["initrd"],
                **load,
                **raw,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{path}: bad configuration of a lab: {error}") from error
        config.validate()
        return config

    def validate(self) -> None:
        """Raises UsageError for what cannot be run, before anything is touched."""
        if len(self.hosts) != 2:
            raise UsageError(f"a lab has two hosts, not {len(self.hosts)}")
        for what, value, least in (
            ("seed", self.seed, 0),
            ("repeats", self.repeats, 1),
            ("image size", self.image_bytes, 64 * MIB),
            ("block size", self.block_bytes, 512 << 10),
            ("pace", self.pace_us, 500),
        ):
            if not isinstance(value, int) or value < least:
                raise UsageError(f"{what}: {value} is too small, the least is {least}")
        if self.block_bytes & (self.block_bytes - 1):
            raise UsageError(f"block size: {self.block_bytes} is no power of two")
        if self.guard not in ("default", "on", "off"):
            raise UsageError(f"guard: {self.guard!r} is none of default, on, off")
        if self.hypervisor != "kvm":
            raise UsageError(f"hypervisor: {self.hypervisor!r} cannot be driven; there is kvm")
        if self.profile != "paced":
            raise UsageError(f"load profile: {self.profile!r} does not exist; there is paced")
        self.cases()

    def cases(self) -> list[tuple[Strategy, bool]]:
        """(strategy, guard) of each case, in the order of the table."""
        names = list(STRATEGIES) if "all" in self.strategies else list(self.strategies)
        chosen = []
        for strategy in map(named, names):
            if self.guard == "default":
                guards = [True] if strategy.safe else [False, True]
            else:
                guards = [self.guard == "on"]
            chosen += [(strategy, guard) for guard in guards]
        return chosen


class Lab:
    """Two hosts, ready to run cases one after the other."""

    def __init__(self, config: LabConfig, judge: Judge, say: Say) -> None:
        self.config = config
        self.judge = judge
        self.say = say

    def run(self) -> list[dict[str, Any]]:
        """Runs and judges every case; returns their verdicts. Raises LabError, UsageError."""
        config = self.config
        config.run_dir.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            hosts = [stack.enter_context(host) for host in self._log_in()]
            machine, snapshot = self._prepare(hosts)
            # Judging takes the other core while the next case runs.
            pool = stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("fork")))
            pool.submit(os.getpid).result()
            return self._all_cases(hosts, machine, snapshot, pool)

    def _log_in(self) -> list[Host]:
        return [Host(config, self.config.ssh_config) for config in self.config.hosts]

    def _prepare(self, hosts: list[Host]) -> tuple[Machine, str]:
        config = self.config
        for host in hosts:
            host.call("claim", path=f"{host.config.private_dir}/run.lock")
            host.call("prepare", folder=f"{host.config.private_dir}/run")
        wanted = 2 * 4100 * (config.image_bytes // config.block_bytes) + 64 * MIB
        free = hosts[0].call("free", path=config.shared_dir)
        if free < wanted:
            raise LabError(
                f"{config.shared_dir}: {free // MIB} MiB free on the shared directory, a case "
                f"needs {wanted // MIB}; make room or take a smaller image"
            )
        facts = [host.call("facts", qemu=host.config.qemu) for host in hosts]
        if facts[0]["qemu"] != facts[1]["qemu"]:
            self.say(f"the hosts differ: {facts[0]['qemu']} and {facts[1]['qemu']}")
        kinds = {
            accelerator(host, config.accelerator, config.kernel, config.initrd, fact)
            for host, fact in zip(hosts, facts, strict=True)
        }
        machine = Machine(config.kernel, config.initrd, "kvm" if kinds == {"kvm"} else "tcg")
        self.loop = Loop()
        snapshot = ensure_snapshot(
            hosts[0], self.loop, machine, config.image_bytes, facts[0], self.say
        )
        return machine, snapshot

    def _all_cases(
        self, hosts: list[Host], machine: Machine, snapshot: str, pool: ProcessPoolExecutor
    ) -> list[dict[str, Any]]:
        config = self.config
        waiting: list[Future[dict[str, Any]]] = []
        todo = [
            (strategy, guard, config.seed + number)
            for number in range(config.repeats)
            for strategy, guard in config.cases()
        ]
        for number, (strategy, guard, seed) in enumerate(todo, start=1):
            name = f"{strategy.name}-{'on' if guard else 'off'}-s{seed}"
            self.say(f"[{number}/{len(todo)}] {strategy.name}, guard {'on' if guard else 'off'}")
            plan = CasePlan(
                strategy=strategy,
                guard=guard,
                seed=seed,
                name=name,
                image=f"{config.shared_dir}/{name}.vhd",
                image_bytes=config.image_bytes,
                block_bytes=config.block_bytes,
                pace_us=config.pace_us,
                machine=machine,
                snapshot=snapshot,
                port=config.migration_port,
            )
            self._case(plan, hosts)
            judged = pool.submit(self.judge, config.run_dir / name)
            judged.add_done_callback(lambda future: self.say(told(future.result())))
            waiting.append(judged)
        return [judged.result() for judged in waiting]

    def _case(self, plan: CasePlan, hosts: list[Host]) -> None:
        """Runs a case; one in which the lab failed is tried once more."""
        folder = self.config.run_dir / plan.name
        for attempt in range(1, ATTEMPTS + 1):
            error = self._attempt(plan, hosts, folder, attempt)
            if error is None:
                return
            self.say(f"  lab error: {error}")
            if attempt < ATTEMPTS:
                failed = self.config.run_dir / "failed" / f"{plan.name}-{attempt}"
                failed.parent.mkdir(exist_ok=True)
                shutil.move(folder, failed)
                self.say(f"  trying once more; the record is in failed/{failed.name}")

    def _attempt(self, plan: CasePlan, hosts: list[Host], folder: Path, attempt: int) -> str | None:
        record = Record(folder)
        run = CaseRun(plan, record, Side(hosts[0]), Side(hosts[1]), self.loop, self._look)
        error = None
        try:
            run.run()
        except LabError as failure:
            error = str(failure)
        except VhdtoolError as failure:
            error = f"unexpected refusal: {failure}"
        trouble = record.consoles.trouble
        if error is not None and trouble is not None and trouble != error:
            error = f"{trouble}; then {error}"
        record.case(self._case_json(plan, hosts, attempt, error, record))
        (folder / "reproduce.txt").write_text(reproduce(plan) + "\n")
        return error

    def _case_json(
        self, plan: CasePlan, hosts: list[Host], attempt: int, error: str | None, record: Record
    ) -> dict[str, Any]:
        config, strategy = self.config, plan.strategy
        failure = None
        if error is not None:
            failure = {"what": error, "log": last_words(record)}
        return {
            "schema": 1,
            "strategy": strategy.name,
            "guard": plan.guard,
            "seed": plan.seed,
            "expected": strategy.expected(plan.guard),
            "direction": "->".join(host.name for host in hosts),
            "attempts": attempt,
            "load": {"profile": config.profile, "pace_us": plan.pace_us},
            "image_bytes": plan.image_bytes,
            "block_bytes": plan.block_bytes,
            "image": "image.vhd",
            "storage": config.storage,
            "hypervisor": config.hypervisor,
            "accelerator": plan.machine.accelerator,
            "legs": len(strategy.legs),
            "points": strategy.points(plan.guard),
            "hosts": [host.name for host in hosts],
            "error": failure,
        }

    # looking at the hosts while a case is live

    def _look(self, run: CaseRun, phase: str) -> None:
        plan, tests = run.plan, self.config.live_tests
        if tests is None or (plan.strategy.name, plan.guard) not in LIVE_CASES:
            return
        path = run.record.folder / "live.json"
        path.write_text(json.dumps(self._live(run, phase), indent=1))
        log = run.record.folder / f"testinfra-{phase}.log"
        command = [sys.executable, "-m", "pytest", "-q", "-m", phase, "-p", "no:cacheprovider"]
        with open(log, "wb") as out:
            done = subprocess.run(
                [*command, str(tests)],
                env={**os.environ, "VHDLAB_LIVE": str(path.resolve())},
                stdout=out,
                stderr=out,
                check=False,
                timeout=120,
            )
        if done.returncode:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise LabError(f"testinfra, {phase}: {' '.join(last)}; see {log}")

    def _live(self, run: CaseRun, phase: str) -> dict[str, Any]:
        hosts: dict[str, Any] = {}
        active = []
        for side, role in ((run.source, "source"), (run.destination, "destination")):
            tap, qemu = side.tap, side.qemu
            shim = None
            if tap is not None:
                shim = {"pid": tap.pid, "socket": tap.socket, "control": tap.control}
                shim["state"] = tap.do("status")["state"]
                active += [side.host.name] if shim["state"] == "active" else []
            machine = None
            if qemu is not None and qemu.died is None:
                machine = {"pid": qemu.pid, "qmp": qemu.qmp, "console": qemu.console}
            hosts[side.host.name] = {
                "ssh": side.host.config.ssh,
                "role": role,
                "private_dir": side.host.config.private_dir,
                "shim": shim,
                "qemu": machine,
            }
        plan, config = run.plan, self.config
        return {
            "phase": phase,
            "strategy": plan.strategy.name,
            "guard": plan.guard,
            "expected": plan.strategy.expected(plan.guard),
            "shared_dir": config.shared_dir,
            "image": plan.image,
            "lease": plan.image + ".lease",
            "ssh_config": str(config.ssh_config.resolve()) if config.ssh_config else None,
            "hosts": hosts,
            "active": "both" if len(active) == 2 else active[0] if active else "none",
        }


def last_words(record: Record) -> list[str]:
    """The last lines of every log that can tell why the lab failed."""
    lines = [f"guest: {line}" for line in record.consoles.said[-3:]]
    logs = [*record.folder.glob("qemu-*.log"), *record.folder.glob("shim-*.err")]
    for path in sorted(logs):
        text = path.read_text(errors="replace").strip().splitlines()
        lines += [f"{path.name}: {line}" for line in text[-3:]]
    return lines


def reproduce(plan: CasePlan) -> str:
    """The one command that repeats a case."""
    guard = "on" if plan.guard else "off"
    return f"make lab STRATEGY={plan.strategy.name} SEED={plan.seed} GUARD={guard}"


def told(verdict: dict[str, Any]) -> str:
    """One line of progress about a case that was judged."""
    mark = "as expected" if verdict["verdict"] == verdict["expected"] else "NOT AS EXPECTED"
    guard = "on" if verdict["guard"] else "off"
    return f"  {verdict['name']}, guard {guard}: {verdict['verdict']} ({mark}) — {verdict['why']}"
