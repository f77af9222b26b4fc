"""All cases of a run: configuration in, `runs/<id>/` out, a line for each case."""

import ctypes
import os
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from vhdtool.errors import LabError, ShimImageError, UsageError, VhdtoolError
from vhdtool.lab.case.plan import CasePlan
from vhdtool.lab.case.record import Record
from vhdtool.lab.case.runner import CaseRun
from vhdtool.lab.config import LabConfig
from vhdtool.lab.custom import NAME as CUSTOM
from vhdtool.lab.guest.memory_state import ensure_memory_state
from vhdtool.lab.hosts.connection import Host
from vhdtool.lab.hypervisors.driver import Driver, Hold
from vhdtool.lab.live_checks.run import FailedLiveCheck, check_live
from vhdtool.lab.log import Place, Progress, verdict_line, with_time
from vhdtool.lab.options import MIB, OPTIONS, RunOptions
from vhdtool.lab.reproduce import make_command, playbook_command
from vhdtool.oracle.evidence.case import SCHEMA
from vhdtool.oracle.evidence.depth import deep_blocks

Judge = Callable[[Path], dict[str, Any]]
ATTEMPTS = 2
_PR_SET_PDEATHSIG = 1


class Lab:
    """The cases of one run, on two hosts, one after the other."""

    def __init__(
        self, config: LabConfig, judge: Judge, progress: Progress, driver: Driver | None = None
    ) -> None:
        self.verdicts: dict[str, dict[str, Any]] = {}
        """Verdicts of the cases that are judged, by the name of their directory."""
        self.config = config
        self.driver = driver or config.make_driver()
        self.judge = judge
        self.progress = with_time(progress)

    def run(self) -> None:
        """Run and judge every case. Raises LabError, UsageError."""
        config = self.config
        self._check_hold()
        config.run_dir.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            hosts = [stack.enter_context(Host(host, config.ssh_config)) for host in config.hosts]
            memory_state = self._prepare(hosts)
            # A process of its own: the next case runs while this one is judged.
            forked = get_context("fork")
            pool = stack.enter_context(ProcessPoolExecutor(1, forked, end_with, (os.getpid(),)))
            pool.submit(os.getpid).result()
            self._all_cases(hosts, memory_state, pool)

    def _check_hold(self) -> None:
        """Raises UsageError for an order that this hypervisor cannot keep."""
        if self.driver.hold is Hold.SWITCH:
            return
        for strategy, _ in self.config.cases():
            if not all(leg.pauses_destination for leg in strategy.legs):
                raise UsageError(
                    f"strategy {strategy.name}: {self.config.hypervisor} resumes the guest by "
                    "itself, so the destination must be paused before SUSPENDED; try hold"
                )

    def _prepare(self, hosts: list[Host]) -> str:
        """The path of the memory state from which each case starts."""
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
        self.driver.prepare(hosts, self.progress)
        return ensure_memory_state(self.driver, hosts[0], config.image_bytes, self.progress)

    def _all_cases(self, hosts: list[Host], memory_state: str, pool: ProcessPoolExecutor) -> None:
        config = self.config
        waiting: list[Future[dict[str, Any]]] = []
        todo = config.planned()
        for line in config.left_out():
            self.progress(f"left out: {line}")
        for number, (name, strategy, guard, seed) in enumerate(todo, start=1):
            plan = CasePlan(
                strategy=strategy,
                guard=guard,
                seed=seed,
                name=name,
                image=f"{config.shared_dir}/{name}.{config.image}",
                kind=config.image,
                image_bytes=config.image_bytes,
                block_bytes=config.block_bytes,
                profile=config.profile,
                pace_us=config.pace_us,
                deep_blocks=deep_blocks(config.image_bytes // config.block_bytes),
                memory_state=memory_state,
                port=config.migration_port,
                discards=self.driver.discards,
            )
            place = Place(number, len(todo), plan.label)
            began = time.monotonic()
            self.run_case(plan, hosts, place)
            seconds = time.monotonic() - began
            judged = pool.submit(self.judge, config.run_dir / name)
            judged.add_done_callback(partial(self._judged, place, seconds))
            waiting.append(judged)
        for judged in waiting:
            judged.result()

    def _judged(self, place: Place, seconds: float, future: "Future[dict[str, Any]]") -> None:
        if not future.cancelled() and future.exception() is None:
            verdict = future.result()
            self.verdicts[verdict["case"]] = verdict
            self.progress(verdict_line(place, verdict, seconds))

    def run_case(self, plan: CasePlan, hosts: list[Host], place: Place) -> None:
        """Run a case; repeat it once when the lab failed, and not the image."""
        folder = self.config.run_dir / plan.name
        for attempt in range(1, ATTEMPTS + 1):
            error = self._attempt(plan, hosts, folder, attempt)
            if error is None:
                return
            self.progress(f"{place} lab error: {error}")
            if isinstance(error, ShimImageError) or self._proved(error, folder):
                return
            if attempt < ATTEMPTS:
                failed = self.config.run_dir / "failed" / f"{plan.name}-{attempt}"
                failed.parent.mkdir(exist_ok=True)
                shutil.move(folder, failed)
                self.progress(f"{place} tries once more; the record is in failed/{failed.name}")

    def _proved(self, error: VhdtoolError, folder: Path) -> bool:
        """Whether the record explains a failed live check: a damaged image is not retried."""
        return isinstance(error, FailedLiveCheck) and self.judge(folder)["verdict"] == "corrupt"

    def _attempt(
        self, plan: CasePlan, hosts: list[Host], folder: Path, attempt: int
    ) -> VhdtoolError | None:
        """Run a case once; its error, or None."""
        record = Record(folder)
        checks = partial(check_live, self.config)
        run = CaseRun(plan, record, (hosts[0], hosts[1]), self.driver, checks)
        error: VhdtoolError | None = None
        try:
            run.run()
        except LabError as failure:
            error = failure
        except VhdtoolError as failure:
            error = LabError(f"unexpected refusal: {failure}")
        trouble = record.consoles.trouble
        checked = isinstance(error, FailedLiveCheck)
        if error and not checked and record.count(lambda event: event["event"] == "fenced"):
            # Another writer was there, and may be absent from a second attempt.
            error = ShimImageError(str(error))
        if error is not None and trouble is not None and trouble != str(error):
            kind = ShimImageError if isinstance(error, ShimImageError) else LabError
            error = kind(f"{trouble}; then {error}")
        record.write_case(self._case_json(plan, hosts, attempt, error, record))
        (folder / "reproduce.txt").write_text(self.reproduce(plan) + "\n")
        return error

    def reproduce(self, plan: CasePlan) -> str:
        """The command that repeats a case."""
        options = {option.field: getattr(self.config, option.field) for option in OPTIONS}
        options.update(seed=plan.seed, repeats=1, guard="on" if plan.guard else "off")
        if not self.config.steps:
            options.update(strategies=(plan.strategy.name,))
        case, given = RunOptions(**options), self.config.given
        if not self.config.inventory:
            return make_command(case, given)
        return playbook_command(case, self.config.inventory, given)

    def _case_json(
        self,
        plan: CasePlan,
        hosts: list[Host],
        attempt: int,
        error: VhdtoolError | None,
        record: Record,
    ) -> dict[str, Any]:
        config, strategy = self.config, plan.strategy
        failure: dict[str, Any] | None = None
        if error is not None:
            failure = {"what": str(error), "log": last_words(record)}
            if isinstance(error, FailedLiveCheck):
                failure["look"] = True
        return {
            "schema": SCHEMA,
            **plan.describe(),
            **refused_points(plan, record),
            "direction": "->".join(host.name for host in hosts),
            "attempts": attempt,
            "storage": f"a LUN (iSCSI), in {config.storage}" if strategy.lun else config.storage,
            "hypervisor": config.hypervisor,
            "accelerator": self.driver.accelerator,
            "hosts": [host.name for host in hosts],
            "error": failure,
        }


def end_with(parent: int) -> None:
    """Have this process killed when `parent` ends.

    It inherits the parent's output, and the playbook waits until that is closed.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def refused_points(plan: CasePlan, record: Record) -> dict[str, Any]:
    """The points of a given order that was refused. Nobody knew before whether it would be."""
    if plan.strategy.name != CUSTOM or not record.count(
        lambda event: event["event"] == "cancelled"
    ):
        return {}
    return {"points": {"1": list(plan.strategy.refused_points)}}


def last_words(record: Record) -> list[str]:
    """The last lines of each log that can explain why the lab failed."""
    lines = [f"guest: {line}" for line in record.consoles.lines[-3:]]
    logs = [*record.folder.glob("qemu-*.log"), *record.folder.glob("shim-*.err")]
    for path in sorted(logs):
        text = path.read_text(errors="replace").strip().splitlines()
        lines += [f"{path.name}: {line}" for line in text[-3:]]
    return lines
