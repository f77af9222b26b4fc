"""case.json, against the events and the command in reproduce.txt."""

from collections.abc import Iterator

from vhdtool.oracle.evidence.case import Case
from vhdtool.oracle.evidence.events import Events
from vhdtool.oracle.evidence.grammar import cite
from vhdtool.oracle.finding import Finding, doubt


def check_case_json(case: Case, events: Events, reproduce: str | None) -> list[Finding]:
    """Doubts: either of the two may be wrong."""
    findings = [*_command(case, reproduce)]
    if events.complete:
        findings += [*_lease(case, events), *_sizes(case, events), *_storage(case, events)]
    return findings


def _command(case: Case, reproduce: str | None) -> Iterator[Finding]:
    options = dict(word.split("=", 1) for word in (reproduce or "").split() if "=" in word)
    expected = {
        "STRATEGY": case.strategy,
        "SEED": str(case.seed),
        "GUARD": "on" if case.guard else "off",
    }
    for key, value in expected.items():
        if key in options and options[key] != value:
            text = f"reproduce.txt has {key}={options[key][:40]}, case.json has {value!r}"
            yield doubt("case-command", text)


def _lease(case: Case, events: Events) -> Iterator[Finding]:
    guard = "on" if case.guard else "off"
    reads = [event for event in events.items if "lease" in event.extra]
    for event in reads:
        if (event.extra["lease"] is True) != case.guard and event.name != "opened":
            what = "took the lease" if event.extra["lease"] is True else "took no lease"
            yield doubt("case-guard", f"case.json: the guard is {guard}, but {cite(event)} {what}")
            return
    if case.guard and not any(event.extra["lease"] is True for event in reads):
        yield doubt("case-guard", "case.json: the guard is on, but no event took the lease")


def _sizes(case: Case, events: Events) -> Iterator[Finding]:
    for event in events.named("attached"):
        size = event.integer("size")
        if size is not None and size != case.image_bytes:
            text = f"case.json: `image_bytes` is {case.image_bytes}, but {cite(event)} has {size}"
            yield doubt("case-size", text)
            return


def _storage(case: Case, events: Events) -> Iterator[Finding]:
    refused = events.named("kept-out")
    if refused and not case.exclusive:
        text = f"case.json: `exclusive` is false, but in {cite(refused[0])} the storage kept "
        yield doubt("case-exclusive", text + "the destination out")
