"""docs/interop.md says what the programs do today."""

from tests.interop.interop_matrix import DOC, page


def test_the_table_is_current() -> None:
    assert DOC.read_text(encoding="utf-8") == page(), "run `make interop`"
