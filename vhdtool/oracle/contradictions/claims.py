"""What case.json says of a case, against the events and the command in reproduce.txt."""

from collections.abc import Iterator

from vhdtool.oracle.evidence.case import Case
from vhdtool.oracle.evidence.events import Events
from vhdtool.oracle.evidence.grammar import line
from vhdtool.oracle.finding import Finding, doubt


def claims(case: Case, events: Events, reproduce: str | None) -> list[Finding]:
    """Doubts: either of the two may be wrong."""
    findings = [*_command(case, reproduce)]
    if events.complete:
        findings += [*_lease(case, events), *_sizes(case, events), *_storage(case, events)]
    return findings


def _command(case: Case, reproduce: str | None) -> Iterator[Finding]:
    words = dict(word.split("=", 1) for word in (reproduce or "").split() if "=" in word)
    said = {
        "STRATEGY": case.strategy,
        "SEED": str(case.seed),
        "GUARD": "on" if case.guard else "off",
    }
    for key, value in said.items():
        if key in words and words[key] != value:
            text = f"reproduce.txt says {key}={words[key][:40]}, case.json {value!r}"
            yield doubt("case-command", text)


def _lease(case: Case, events: Events) -> Iterator[Finding]:
    guard = "on" if case.guard else "off"
    taken = [event for event in events.items if "lease" in event.extra]
    for event in taken:
        if (event.extra["lease"] is True) != case.guard and event.name != "opened":
            said = "took the lease" if event.extra["lease"] is True else "took no lease"
            text = f"case.json says that the guard is {guard}; {line(event)} {said}"
            yield doubt("case-guard", text)
            return
    if case.guard and not any(event.extra["lease"] is True for event in taken):
        yield doubt("case-guard", "case.json says that the guard is on; no event took the lease")


def _sizes(case: Case, events: Events) -> Iterator[Finding]:
    for event in events.named("attached"):
        size = event.integer("size")
        if size is not None and size != case.image_bytes:
            text = f"case.json: `image_bytes` is {case.image_bytes}, {line(event)} says {size}"
            yield doubt("case-size", text)
            return


def _storage(case: Case, events: Events) -> Iterator[Finding]:
    kept = events.named("kept-out")
    if kept and not case.exclusive:
        text = f"case.json: `exclusive` is false, but {line(kept[0])} says that the storage "
        yield doubt("case-exclusive", text + "kept the destination out")
