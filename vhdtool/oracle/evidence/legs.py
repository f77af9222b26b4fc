"""The legs of a case, assembled from its events."""

from dataclasses import dataclass

from vhdtool.oracle.evidence.events import CONTROLLER_HOST, Event, Events


@dataclass
class Leg:
    """One migration, from its `migrate-started` on. A host that no event names is ""."""

    number: int
    started: Event
    source: str = ""
    destination: str = ""
    suspended: Event | None = None
    resumed: Event | None = None
    migrated: Event | None = None
    cancelled: Event | None = None

    @property
    def outcome(self) -> Event | None:
        """`migrated` or `cancelled`, whichever came last."""
        ends = [event for event in (self.migrated, self.cancelled) if event]
        return max(ends, key=lambda event: event.seq, default=None)

    @property
    def moved(self) -> bool:
        """Whether the guest runs at the destination when the leg has ended."""
        return self.outcome is not None and self.outcome is self.migrated

    @property
    def guest_host(self) -> str:
        """The host on which the guest runs when the leg has ended."""
        return self.destination if self.moved else self.source

    @property
    def runs_again(self) -> Event | None:
        """When the guest ran again: at the destination, or at the source after a cancel."""
        return self.resumed if self.moved else self.cancelled


def legs_of(events: Events) -> list[Leg]:
    """All legs in the order of `seq`."""
    legs: list[Leg] = []
    for event in events.items:
        if event.name == "migrate-started":
            legs.append(Leg(event.leg, event))
        elif legs and event.name in ("suspended", "resumed", "migrated", "cancelled"):
            setattr(legs[-1], event.name, event)
    for leg in legs:
        for event in events.items:
            if event.leg == leg.number and event.host != CONTROLLER_HOST:
                if event.side == "source":
                    leg.source = leg.source or event.host
                elif event.side == "destination":
                    leg.destination = leg.destination or event.host
    return legs


def incomplete_legs(legs: list[Leg], expected: int) -> list[str]:
    """Why the events do not describe `expected` legs from start to end; one sentence each."""
    problems = [
        f"the events have no leg {number}"
        for number in range(1, expected + 1)
        if number not in {leg.number for leg in legs}
    ]
    for leg in legs:
        name = f"leg {leg.number}"
        if leg.number > expected:
            problems.append(f"the events have {name}, case.json names {expected} legs")
        if leg.outcome is None:
            problems.append(f"{name} neither migrated nor was cancelled")
        elif leg.moved and not (leg.suspended and leg.resumed):
            problems.append(f"{name} migrated without `suspended` and `resumed`")
        if leg.moved and not (leg.source and leg.destination):
            problems.append(f"{name}: no event names source and destination")
    return problems
