"""`--lease`: what it may say, and one clear line for what it may not."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from shims import owner

from vhdtool.cli.serve import serve
from vhdtool.errors import UsageError
from vhdtool.tapdisk.choose import lease_opener
from vhdtool.tapdisk.lease import EpochLease, TrustingLease
from vhdtool.tapdisk.sanlock import Resource


def test_without_a_word_the_epoch_record_keeps_the_lease(tmp_path: Path) -> None:
    for guard, kind in ((True, EpochLease), (False, TrustingLease)):
        lease = lease_opener(None, owner("a"), guard)(tmp_path / "record")
        assert type(lease) is kind
        lease.close()


def test_a_resource_is_written_as_sanlock_writes_it() -> None:
    assert str(Resource.parse("lab:disk1:/srv/l/disk1")) == "lab:disk1:/srv/l/disk1:0"
    assert Resource.parse("lab:d:/srv/l:1048576") == Resource("lab", "d", "/srv/l", 1 << 20)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "there is no such lease"),
        ("flock:x", "there is no such lease"),
        ("sanlock", "write sanlock:LOCKSPACE:NAME:FILE"),
        ("sanlock:lab:disk", "write sanlock:LOCKSPACE:NAME:FILE"),
        ("sanlock:lab::/f", "write sanlock:LOCKSPACE:NAME:FILE"),
        (f"sanlock:{'l' * 49}:d:/f", "write sanlock:LOCKSPACE:NAME:FILE"),
        ("sanlock:lab:d:/f:1M", "write sanlock:LOCKSPACE:NAME:FILE"),
        ("sanlock:lab:d:/a b", "cannot use such a file name"),
        ("sanlock:lab:d:", "cannot use such a file name"),
    ],
)
def test_what_makes_no_sense_is_told_before_anything_is_touched(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        lease_opener(text, owner("a"), True)


def test_a_lease_without_the_guard_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(bytes(4096))
    words = [str(tmp_path / "d"), "--raw", "--socket", str(tmp_path / "s"), "--faithful"]
    result = CliRunner().invoke(serve, [*words, "--lease", "sanlock:lab:d:/f"])
    assert isinstance(result.exception, UsageError)
    assert "--lease and --faithful" in str(result.exception)
    assert [entry.name for entry in tmp_path.iterdir()] == ["d"]
