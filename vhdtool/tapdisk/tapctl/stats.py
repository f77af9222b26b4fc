"""The reply to `stats`: a minor's counters and images, in tapdisk's spelling of JSON."""

from vhdtool.tapdisk.tapctl import wire as wire
from vhdtool.tapdisk.tapctl.minor import Minor

TYPE_NUMBERS = {"aio": 0, "vhd": 4, "qcow2": 6, "log": 9, "nbd": 15}
"""tapdisk's numbers of its drivers; 6 is its qcow, of which only the number is left."""
QUEUE = 352
"""Requests in flight that tapdisk's aio driver allows."""


def to_json(value: object) -> str:
    """Returns JSON with tapdisk's spaces; some clients compare it as text."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f'"{name}": {to_json(one)}' for name, one in value.items()) + " }"
    if isinstance(value, list):
        return "[ " + ", ".join(to_json(one) for one in value) + " ]"
    if value is None:
        return "null"
    return str(value) if isinstance(value, int) else f'"{_escaped(str(value))}"'


def _escaped(plain: str) -> str:
    return plain.replace("\\", "\\\\").replace('"', '\\"')


def stats_of(minor: Minor) -> dict[str, object]:
    """Returns sectors of 512 bytes. Requests are counted at the leaf, where they come in."""
    reads, writes = minor.disk.router.sectors() if minor.disk is not None else (0, 0)
    cached = bool(minor.flags & wire.NO_O_DIRECT)
    return {
        "name": minor.args or "(null)",
        "secs": [reads, writes],
        "images": _images(minor, [reads, writes]),
        "FIXME_enospc_redirect_count": 0,
        "nbd_mirror_failed": int(minor.filters is not None and minor.filters.mirror_failed),
        "reqs_outstanding": 0,
        "read_caching": "true" if cached else "false",
    }


def _images(minor: Minor, hits: list[int]) -> list[object]:
    if minor.disk is None or minor.state & wire.CLOSED:
        return []
    kind, _, path = minor.args.partition(":")
    images: list[object] = [_image(path, kind, hits)]
    filters = minor.filters
    if filters is not None and filters.secondary and not filters.mirror_failed:
        # Second in the list, behind the change log where there is one.
        kind, _, path = filters.secondary.partition(":")
        images.insert(0 if filters.change_log else 1, _image(path, kind, [0, 0]))
    if filters is not None and filters.change_log:
        images.insert(0, _image(filters.change_log, "log", [0, 0]))
    for parent, raw in minor.disk.session.parents():
        images.append(_image(parent, "aio" if raw else "vhd", [0, 0]))
    return images


def _image(name: str, kind: str, hits: list[int]) -> dict[str, object]:
    status = {"reqs": {"max": QUEUE, "pending": 0}} if kind == "aio" else None
    driver = {"type": TYPE_NUMBERS[kind], "name": kind, "status": status}
    return {"name": name, "hits": hits, "fail": [0, 0], "driver": driver}
