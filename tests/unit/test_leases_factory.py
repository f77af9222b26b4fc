"""`--lease`: what it may say, and one clear line for what it may not."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.shims import owner
from vhdtool.cli.commands.serve import serve
from vhdtool.errors import UsageError
from vhdtool.leases.factory import lease_opener
from vhdtool.leases.lease import EpochLease, UnguardedLease
from vhdtool.leases.sanlock import Resource
from vhdtool.storage.scsi import Lun, initiator_name


def test_without_a_word_the_epoch_record_keeps_the_lease(tmp_path: Path) -> None:
    for guard, kind in ((True, EpochLease), (False, UnguardedLease)):
        lease = lease_opener(None, owner("a"), guard)(tmp_path / "record")
        assert type(lease) is kind
        lease.close()


def test_a_resource_is_written_as_sanlock_writes_it() -> None:
    assert str(Resource.parse("lab:disk1:/srv/l/disk1")) == "lab:disk1:/srv/l/disk1:0"
    assert Resource.parse("lab:d:/srv/l:1048576") == Resource("lab", "d", "/srv/l", 1 << 20)


def test_a_lun_url_never_shows_its_secret() -> None:
    lun = Lun.parse("iscsi://bob%s3cret@[::1]:3261/iqn.2026-01.x:d/7")
    assert (lun.portal, lun.target, lun.number) == ("[::1]:3261", "iqn.2026-01.x:d", 7)
    assert lun.login == ("bob", "s3cret")
    assert str(lun) == "iscsi://[::1]:3261/iqn.2026-01.x:d/7"
    assert "s3cret" not in repr(lun)
    assert Lun.parse("iscsi:/h/t/0") == Lun("h", "t", 0) == Lun.parse("iscsi://h:3260/t/0")


def test_an_initiator_has_open_iscsis_name_where_there_is_one(tmp_path: Path) -> None:
    name = tmp_path / "initiatorname.iscsi"
    assert initiator_name(name).startswith("iqn.2011-02.org.vhdtool:")
    name.write_text("## comment\nInitiatorName=iqn.1993-08.org.debian:01:abc\n")
    assert initiator_name(name) == "iqn.1993-08.org.debian:01:abc"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "there is no such lease"),
        ("flock:x", "there is no such lease"),
        ("sanlock", "write sanlock:LOCKSPACE:NAME:FILE"),
        ("sanlock:lab:disk", "write sanlock:LOCKSPACE:NAME:FILE"),
        ("sanlock:lab::/f", "write sanlock:LOCKSPACE:NAME:FILE"),
        (f"sanlock:{'l' * 49}:d:/f", "write sanlock:LOCKSPACE:NAME:FILE"),
        (f"sanlock:{'é' * 25}:d:/f", "write sanlock:LOCKSPACE:NAME:FILE"),
        ("sanlock:lab:d:/f:1M", "write sanlock:LOCKSPACE:NAME:FILE"),
        ("sanlock:lab:d:/f:\u00b2", "write sanlock:LOCKSPACE:NAME:FILE"),
        (f"sanlock:lab:d:/f:{'9' * 20}", "write sanlock:LOCKSPACE:NAME:FILE"),
        (f"sanlock:lab:d:/{'é' * 512}", "cannot use such a file name"),
        ("sanlock:lab:d:/a b", "cannot use such a file name"),
        ("sanlock:lab:d:", "cannot use such a file name"),
        ("scsi:", "write iscsi://HOST[:PORT]/TARGET/LUN"),
        ("scsi:iscsi://h/t", "write iscsi://HOST[:PORT]/TARGET/LUN"),
        ("scsi:iscsi://h/t/1/2", "write iscsi://HOST[:PORT]/TARGET/LUN"),
        ("scsi:iscsi://h:99999/t/1", "write iscsi://HOST[:PORT]/TARGET/LUN"),
        ("scsi:iscsi://h/t\udcff/1", "write iscsi://HOST[:PORT]/TARGET/LUN"),
        ("scsi:iscsi://h:\u0663/t/1", "write iscsi://HOST[:PORT]/TARGET/LUN"),
        ("scsi:http://h/t/1", "write iscsi://HOST[:PORT]/TARGET/LUN"),
    ],
)
def test_what_makes_no_sense_is_told_before_anything_is_touched(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        lease_opener(text, owner("a"), True)


def test_a_secret_is_not_in_the_refusal_of_a_bad_url() -> None:
    with pytest.raises(UsageError) as caught:
        lease_opener("scsi:iscsi://bob%s3cret@h/t", owner("a"), True)
    assert "s3cret" not in str(caught.value)


def test_a_lease_without_the_guard_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(bytes(4096))
    words = [str(tmp_path / "d"), "--raw", "--socket", str(tmp_path / "s"), "--faithful"]
    result = CliRunner().invoke(serve, [*words, "--lease", "sanlock:lab:d:/f"])
    assert isinstance(result.exception, UsageError)
    assert "--lease and --faithful" in str(result.exception)
    assert [entry.name for entry in tmp_path.iterdir()] == ["d"]
