"""Records of real migrations, as they were written: each later judge gives them the same verdict.

A record is judged years after it was made. These hold today's version of its pieces; a field may
be added to what is written, none may be renamed or dropped.
"""

import shutil
import tarfile
from pathlib import Path

import pytest

from vhdtool.oracle.verdict import judge_case

RECORDS = Path(__file__).resolve().parents[1] / "records"
VERDICTS = {
    "reopen-on": "consistent",
    "activate-retry-on": "consistent",
    "implicit-first-on": "refused",
    "qcow2-hold-on": "consistent",
    "activate-back-on": "consistent",
    "login-on": "consistent",
    "overlap-off": "corrupt",
}


def unpack(name: str, folder: Path) -> Path:
    """The case directory of a record of that name."""
    with tarfile.open(RECORDS / f"{name}.tar.xz") as archive:
        # Python 3.11.4 and later ask for a filter.
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(folder, **safe)  # type: ignore[arg-type]
        return folder / archive.getnames()[0]


@pytest.mark.parametrize("name", list(VERDICTS))
def test_a_record_keeps_its_verdict(name: str, tmp_path: Path) -> None:
    case = unpack(name, tmp_path)
    entry = judge_case(case)
    assert entry["verdict"] == VERDICTS[name], entry["why"]
    assert entry["planted"]["faults"] == entry["planted"]["caught"] >= 12
    findings = [f for oracle in entry["oracles"].values() for f in oracle["findings"]]
    if VERDICTS[name] != "corrupt":
        assert [f for f in findings if f["severity"] != "info"] == []
    shutil.rmtree(case)


def test_every_record_is_judged() -> None:
    assert {path.name.partition(".")[0] for path in RECORDS.glob("*.tar.xz")} == set(VERDICTS)
