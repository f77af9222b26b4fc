"""The states of a disk as a table: which operation leads from which state to which. No I/O.

An operation that the table does not name for the current state is refused and changes nothing.
"""

import enum
from typing import Literal

from vhdtool.errors import StateError


class State(enum.StrEnum):
    """What a disk does with its image."""

    DETACHED = "detached"
    """No image is named."""
    ATTACHED = "attached"
    """Path, size and format are known; nothing has been read."""
    STANDBY = "standby"
    """The image is open without the lease."""
    ACTIVE = "active"
    """The image is open, with the lease unless the guard is off."""
    PAUSED = "paused"
    """The image is closed, and requests wait for `unpause`."""
    FENCED = "fenced"
    """The lease or the image was lost; nothing more is written."""


class GateMode(enum.StrEnum):
    """What happens to a request that arrives."""

    SERVE = "serve"
    HOLD = "hold"
    """It waits until the mode changes."""
    REFUSE = "refuse"
    """It fails with EIO at once."""


class ReopenMode(enum.StrEnum):
    """Which requests close and reopen the image first."""

    PLAIN = "plain"
    """None."""
    EACH = "each"
    FIRST = "first"


Operation = Literal[
    "export", "attach", "open", "activate", "pause", "unpause", "exchange", "deactivate",
    "stop-queueing", "detach", "first request", "lost lease",
]  # fmt: skip
Table = dict[Operation, dict[State, State]]

TRANSITIONS: Table = {
    "export": {State.DETACHED: State.DETACHED},
    "attach": {State.DETACHED: State.ATTACHED},
    "open": {State.ATTACHED: State.STANDBY},
    "activate": {State.ATTACHED: State.ACTIVE, State.STANDBY: State.ACTIVE},
    "pause": {State.ACTIVE: State.PAUSED, State.STANDBY: State.PAUSED},
    "unpause": {State.PAUSED: State.ACTIVE},
    "exchange": {State.PAUSED: State.ACTIVE},
    "deactivate": dict.fromkeys(
        (State.ACTIVE, State.STANDBY, State.PAUSED, State.FENCED), State.ATTACHED
    ),
    "stop-queueing": {State.ATTACHED: State.ATTACHED},
    "detach": dict.fromkeys(State, State.DETACHED),
    # What no operator asks for:
    "first request": {State.STANDBY: State.ACTIVE},
    "lost lease": {State.STANDBY: State.FENCED, State.ACTIVE: State.FENCED},
}
GUARD_OFF: Table = {"open": {State.ATTACHED: State.ACTIVE}}
"""Replaces rows of TRANSITIONS where no lease excludes: tapdisk2 serves as soon as it is open."""


class StateTable:
    """The current state of one disk."""

    def __init__(self, guard: bool) -> None:
        self.current = State.DETACHED
        self._transitions = TRANSITIONS if guard else TRANSITIONS | GUARD_OFF

    def allows(self, operation: Operation) -> bool:
        """Returns whether `operation` is possible now."""
        return self.current in self._transitions[operation]

    def require(self, operation: Operation) -> None:
        """Raises StateError unless `operation` is possible now."""
        if not self.allows(operation):
            wanted = " or ".join(self._transitions[operation])
            raise StateError(f"{operation}: the disk is {self.current}, must be {wanted}")

    def change(self, operation: Operation) -> None:
        """Enters the state that follows `operation`. Raises StateError as `require` does."""
        self.require(operation)
        self.current = self._transitions[operation][self.current]


def markdown() -> str:
    """TRANSITIONS as the table in docs/shim.md: a row an operation, a column a state."""
    lines = ["| operation | " + " | ".join(State) + " |", "|---" * (len(State) + 1) + "|"]
    for operation, changes in TRANSITIONS.items():
        cells = [changes.get(state, "") for state in State]
        lines.append(f"| {operation} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
