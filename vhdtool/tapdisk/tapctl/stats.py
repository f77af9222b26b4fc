"""What `stats` tells of a minor, spelled as tapdisk spells it."""

from vhdtool.tapdisk.tapctl import wire as wire
from vhdtool.tapdisk.tapctl.minor import Vbd

TYPE_NUMBERS = {"aio": 0, "vhd": 4, "qcow2": 6, "log": 9, "nbd": 15}
"""As tapdisk counts its drivers; 6 is its qcow, of which only the number is left."""
QUEUE = 352
"""Requests that tapdisk's aio driver can have under way."""


def spelled(value: object) -> str:
    """JSON with tapdisk's spaces; clients are known that compare it as text."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f'"{name}": {spelled(one)}' for name, one in value.items()) + " }"
    if isinstance(value, list):
        return "[ " + ", ".join(spelled(one) for one in value) + " ]"
    if value is None:
        return "null"
    return str(value) if isinstance(value, int) else f'"{_escaped(str(value))}"'


def _escaped(plain: str) -> str:
    return plain.replace("\\", "\\\\").replace('"', '\\"')


def stats_of(vbd: Vbd) -> dict[str, object]:
    """Sectors of 512 bytes. Requests are counted where they come in: at the leaf."""
    reads, writes = vbd.disk.router.sectors() if vbd.disk is not None else (0, 0)
    cached = bool(vbd.flags & wire.NO_O_DIRECT)
    return {
        "name": vbd.args or "(null)",
        "secs": [reads, writes],
        "images": _images(vbd, [reads, writes]),
        "FIXME_enospc_redirect_count": 0,
        "nbd_mirror_failed": int(vbd.layers is not None and vbd.layers.mirror_failed),
        "reqs_outstanding": 0,
        "read_caching": "true" if cached else "false",
    }


def _images(vbd: Vbd, moved: list[int]) -> list[object]:
    if vbd.disk is None or vbd.bits & wire.CLOSED:
        return []
    kind, _, path = vbd.args.partition(":")
    told: list[object] = []
    told.append(_image(path, kind, moved))
    layers = vbd.layers
    if layers is not None and layers.secondary and not layers.mirror_failed:
        # Behind what the chain began with, which is the log where there is one.
        kind, _, path = layers.secondary.partition(":")
        told.insert(0 if layers.changes else 1, _image(path, kind, [0, 0]))
    if layers is not None and layers.changes:
        told.insert(0, _image(layers.changes, "log", [0, 0]))
    for parent, raw in vbd.disk.session.parents():
        told.append(_image(parent, "aio" if raw else "vhd", [0, 0]))
    return told


def _image(name: str, kind: str, hits: list[int]) -> dict[str, object]:
    status = {"reqs": {"max": QUEUE, "pending": 0}} if kind == "aio" else None
    driver = {"type": TYPE_NUMBERS[kind], "name": kind, "status": status}
    return {"name": name, "hits": hits, "fail": [0, 0], "driver": driver}
