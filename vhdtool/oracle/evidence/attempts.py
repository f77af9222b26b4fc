"""The attempts to migrate, as the events tell of them."""

from dataclasses import dataclass

from vhdtool.oracle.evidence.events import CONTROLLER_HOST, Event, Events


@dataclass
class Attempt:
    """From one migrate-started to the next. Hosts are "" where no event names them."""

    leg: int
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
        return self.outcome is not None and self.outcome is self.migrated

    @property
    def runs_again(self) -> Event | None:
        """When the guest ran again: at the destination, or at the source after a cancel."""
        return self.resumed if self.moved else self.cancelled


def attempts_of(events: Events) -> list[Attempt]:
    """All attempts in the order of `seq`."""
    attempts: list[Attempt] = []
    for event in events.items:
        if event.name == "migrate-started":
            attempts.append(Attempt(event.leg, event))
        elif attempts and event.name in ("suspended", "resumed", "migrated", "cancelled"):
            setattr(attempts[-1], event.name, event)
    for attempt in attempts:
        for event in events.items:
            if event.leg == attempt.leg and event.host != CONTROLLER_HOST:
                if event.side == "source":
                    attempt.source = attempt.source or event.host
                elif event.side == "destination":
                    attempt.destination = attempt.destination or event.host
    return attempts


def gaps_in(attempts: list[Attempt], legs: int) -> list[str]:
    """What the events lack to tell of `legs` migrations from start to end."""
    problems = [
        f"no event tells of leg {leg}"
        for leg in range(1, legs + 1)
        if leg not in {attempt.leg for attempt in attempts}
    ]
    for attempt in attempts:
        name = f"leg {attempt.leg}"
        if attempt.leg > legs:
            problems.append(f"events tell of {name}, the case of {legs}")
        if attempt.outcome is None:
            problems.append(f"{name} neither migrated nor was cancelled")
        elif attempt.moved and not (attempt.suspended and attempt.resumed):
            problems.append(f"{name} migrated without `suspended` and `resumed`")
        if attempt.moved and not (attempt.source and attempt.destination):
            problems.append(f"{name}: no event names source and destination")
    return problems
