"""Halves that storages share: the writing one where nothing is ever written, and the end."""

from types import TracebackType
from typing import Never, Self

from vhdtool.errors import StateError


class Closes:
    """A context manager that closes."""

    def close(self) -> None:
        """Gives up what it holds."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class ReadOnly(Closes):
    """What would write raises StateError."""

    name = ""

    def _refuse(self) -> Never:
        raise StateError(f"{self.name}: is only looked at, never written")

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._refuse()

    def zero(self, offset: int, length: int) -> None:
        self._refuse()

    def truncate(self, size: int) -> None:
        self._refuse()

    def flush(self) -> None:
        """Nothing was written."""

    def close(self) -> None:
        """Nothing to give up by default."""
