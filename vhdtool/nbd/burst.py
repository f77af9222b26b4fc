"""What a backend offers beyond single requests: several of one client let in at once."""

from typing import Protocol, TypeGuard, runtime_checkable

from vhdtool.nbd.many import Located


class Served(Protocol):
    """What reads and writes of a burst go to."""

    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: memoryview) -> None: ...


@runtime_checkable
class Burst(Protocol):
    """A backend that lets several requests in at once: it is asked once, not for each of them."""

    def begin(self, writing: bool) -> Served | None:
        """Lets requests in until `end`; None where each has to be asked for."""

    def end(self) -> None:
        """No request of the burst is under way any more."""

    def failed(self, error: Exception) -> None:
        """A request of the burst failed so."""


def is_located(served: object) -> TypeGuard[Located]:
    return hasattr(served, "locate")
