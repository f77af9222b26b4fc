"""A migration that ends at its source: after a refusal, or after a fault on purpose."""

import time

from vhdtool.lab.case.migration import AFTER_SWITCH, TIMEOUT, Migration, Side

QUEUE_TIMEOUT = 2.0


def cancel(migration: Migration, reason: str) -> None:
    """After a refusal: activate the source again if needed, and let the guest go on there."""
    source, destination = migration.source, migration.destination
    if source.shim.state == "attached":
        source.shim.call("activate")
    migration.transfer.cancel(TIMEOUT)
    migration.record.note("cancelled", reason=reason)
    destination.guest.kill()
    _go_on_at_source(migration)


def fail_and_recover(migration: Migration) -> None:
    """Kill the destination's guest after the source has deactivated, and go on at the source.

    The hypervisor may resume the guest at the source at once. The shim there queues its requests
    until the steps of `recover` have activated it.
    """
    source, destination = migration.source, migration.destination
    fault = migration.leg.fault
    destination.guest.kill()
    migration.record.note("fault-injected", destination.host.name, fault=fault)
    migration.transfer.go_on_at_source(TIMEOUT)
    _wait_for_queued_requests(source)
    for step in migration.leg.recover:
        migration.step(step)
    migration.record.note("cancelled", reason=fault)
    _go_on_at_source(migration)


def _wait_for_queued_requests(side: Side) -> None:
    """Wait until requests of all of the guest's devices are queued at the deactivated shim.

    A shim may lose those. The devices of the deep half come late: QEMU throttles them after it
    sent what they had in flight when the guest was stopped.
    """
    deadline = time.monotonic() + QUEUE_TIMEOUT
    while side.shim.call("status")["waiting"] < side.guest.devices and time.monotonic() < deadline:
        time.sleep(0.01)


def _go_on_at_source(migration: Migration) -> None:
    migration.destination.shim.detach()
    migration.load.wait_more(AFTER_SWITCH, TIMEOUT)
    migration.load.check(migration.source.guest)
