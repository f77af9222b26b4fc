"""docs/quickstart.md: the messages that it explains are those that programs print."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")


def sources() -> str:
    """The texts of the programs, with messages that go over several lines joined."""
    folders = ("scripts", "vhdtool", "plugins")
    paths = [path for name in folders for path in (ROOT / name).rglob("*") if path.is_file()]
    text = "".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)
    return re.sub(r'"\s*\n\s*f?"', "", text)


def test_explained_messages_are_printed() -> None:
    (table,) = re.findall(r"\| message \|.*?\n((?:\|.*\n)+)", PAGE)
    messages = [
        words
        for row in table.splitlines()[1:]
        for words in re.findall("`([^`]+)`", row.split("|")[1])
    ]
    assert len(messages) > 5
    text = sources()
    assert [words for words in messages if words not in text] == []
