"""The status of a VDI, as one host sees it: its shim, the keys of all hosts, and the lease."""

import contextlib
from typing import Any

from vhdtool.leases.lease import Holder, open_lease
from vhdtool.leases.location import existing_record
from vhdtool.leases.owner import Owner
from vhdtool.nbd.sockets import nbd_uri
from vhdtool.vdi.keys import Key
from vhdtool.vdi.local import LocalVdi, Status, mode_of
from vhdtool.vdi.shim import STATUS_PATIENCE, NoAnswer, ShimConnection, connected


def describe(vdi: LocalVdi) -> dict[str, Any]:
    """Returns the status as JSON has it; waits for no other operation. Raises VhdtoolError."""
    with connected(vdi.control, vdi.host) as shim:
        status = _status(shim)
        pid = None if shim is None else shim.owner.pid
    attached = status["state"] != "detached"
    if not attached:
        vdi.require_image()
    holder = _holder(vdi)
    return {
        "image": vdi.image,
        "host": vdi.host,
        "state": status["state"],
        "mode": mode_of(status) if "read_only" in status and attached else None,
        "uri": nbd_uri(vdi.sockets.export) if attached else None,
        "pid": pid,
        "keys": [_described(key) for key in vdi.read_keys().values()],
        "lease": None
        if holder is None
        else {"host": holder.owner.host, "pid": holder.owner.pid, "epoch": holder.epoch},
    }


def _status(shim: ShimConnection | None) -> Status:
    if shim is None:
        return {"state": "detached"}
    try:
        return shim.call("status", STATUS_PATIENCE)
    except NoAnswer:
        return {"state": "no answer"}


def _described(key: Key) -> dict[str, Any]:
    owner = key.owner
    return {
        "name": key.name,
        "mode": key.mode or None,
        "number": key.number,
        "host": owner.host,
        "pid": owner.pid,
        "since": owner.since,
        "owner": key.state,
    }


def _holder(vdi: LocalVdi) -> Holder | None:
    record = existing_record(vdi.image)
    if record is None:
        return None
    with contextlib.closing(open_lease(record, Owner.here(vdi.host))) as lease:
        return lease.holder()
