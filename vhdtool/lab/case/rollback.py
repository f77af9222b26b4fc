"""A migration that ends at its source: after a refusal, and after a fault on purpose."""

import contextlib
import time
from typing import TYPE_CHECKING

from vhdtool.errors import LabError
from vhdtool.lab.case.plan import Side
from vhdtool.lab.hosts.shim import Tap
from vhdtool.lab.hypervisors.qemu import QUEUES
from vhdtool.lab.strategies import Leg

if TYPE_CHECKING:
    from vhdtool.lab.case.runner import CaseRun

AFTER_SWITCH = 60
"""Acknowledged after the switch before the steps that follow RESUME: the late close must hurt."""
TIMEOUT = 30.0
QUEUE_TIMEOUT = 2.0


def cancel(run: "CaseRun", reason: str) -> None:
    """Refused: the guest runs on at the source, which gets its disk back first."""
    source, destination = run.source, run.destination
    if source.shim().state == "attached":
        source.shim().do("activate")
    destination.machine().may_end = True
    status = source.machine().execute("query-migrate").get("status")
    if status not in (None, "none", "completed", "cancelled", "failed"):
        source.machine().execute("migrate_cancel")
        source.machine().wait_migration("cancelled", timeout=TIMEOUT, start=run.since)
    source.machine().run_again(TIMEOUT)
    run.record.note("cancelled", reason=reason)
    destination.machine().kill()
    _goes_on_alone(run)


def fail_and_recover(run: "CaseRun", leg: Leg) -> None:
    """The destination's QEMU dies after the source gave its disk up; the guest goes back."""
    source, destination = run.source, run.destination
    # From here on the source answers by itself: it resumes as soon as its peer is gone, and its
    # first requests find a shim that queues them.
    destination.machine().kill()
    run.record.note("fault-injected", destination.host.name, fault=leg.fault)
    with contextlib.suppress(LabError):
        source.machine().execute("migrate-continue", state="pre-switchover")
    source.machine().wait_migration_over(TIMEOUT)
    source.machine().run_again(TIMEOUT)
    _wait_for_queued_requests(source.shim())
    for step in leg.recover:
        run.step(step)
    run.record.note("cancelled", reason=leg.fault)
    _goes_on_alone(run)


def _wait_for_queued_requests(shim: Tap) -> None:
    """Until requests of all of the guest's devices wait at the shim that was deactivated.

    It is they that a shim may lose. The devices of the deep half come late: QEMU makes them wait
    for what it let go when the guest was stopped.
    """
    end = time.monotonic() + QUEUE_TIMEOUT
    while shim.do("status")["waiting"] < len(QUEUES) + 1 and time.monotonic() < end:
        time.sleep(0.01)


def _goes_on_alone(run: "CaseRun") -> None:
    run.destination.shim().leave()
    run.destination.tap, run.destination.qemu = None, None
    run.record.consoles.wait_acked(run.record.consoles.acked + AFTER_SWITCH, TIMEOUT)
    check_what_was_written_once(run, run.source)


def check_what_was_written_once(run: "CaseRun", side: Side) -> None:
    """The guest reads it where it runs now, while it goes on writing."""
    consoles = run.record.consoles
    done = consoles.count("deep checked ")
    run.tell(side, "check")
    consoles.wait(
        "the check of what was written once",
        lambda: consoles.count("deep checked ") > done,
        TIMEOUT,
    )
