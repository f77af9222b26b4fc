"""Real clients against a real shim process: qemu, libnbd's tools, fio.

A missing one is a failure: `make setup` installs it.
"""

import json
import os
import random
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.shim_process import MIB, ShimProcess, run
from tests.support.waiting import wait_for


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[ShimProcess]:
    with ShimProcess(tmp_path) as one:
        yield one.activate()


def qemu_io(shim: ShimProcess, *commands: str) -> str:
    words = [part for command in commands for part in ("-c", command)]
    return run("qemu-io", "-f", "raw", "-t", "none", shim.uri, *words)


def closes(shim: ShimProcess) -> None:
    """TERM ends the process with a footer, without sockets, and gives the lease up."""
    assert shim.terminate() == 0, shim.log()
    assert shim.verdict() == 0
    assert not shim.socket.exists()
    assert not shim.control.exists()
    assert "Traceback" not in shim.log()
    last = [event["event"] for event in shim.events()][-2:]
    assert last == ["closed", "detached"]
    record = shim.image.with_name("disk.vhd.lease").read_bytes()[:512]
    assert json.loads(record)["holder"] is None


def test_qemu_io_reads_what_it_wrote_and_term_closes(shim: ShimProcess) -> None:
    out = qemu_io(
        shim,
        "write -P 7 1M 3M",
        "write -P 8 4608 512",
        "write -z 2M 64k",
        "discard 3M 64k",
        "flush",
        "read -P 7 1M 1M",
        "read -P 0 2M 64k",
        "read -P 8 4608 512",
        "read -P 0 40M 4M",
    )
    assert "Pattern verification failed" not in out
    assert "error" not in out.lower()
    closes(shim)
    again = run(
        "qemu-io", "-r", "-f", "vpc", str(shim.image), "-c", "read -P 7 1M 1M",
        "-c", "read -P 8 4608 512",
    )  # fmt: skip
    assert "failed" not in again


def test_sockets_are_private(shim: ShimProcess) -> None:
    for path in (shim.socket, shim.control):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nbdinfo_sees_size_flags_and_the_map(shim: ShimProcess) -> None:
    qemu_io(shim, "write -P 1 2M 2M", "write -P 1 6M 64k")
    info = json.loads(run("nbdinfo", "--json", shim.uri))
    assert info["structured"] is True
    export = info["exports"][0]
    assert export["export-size"] == 64 * MIB
    assert export["contexts"] == ["base:allocation"]
    for flag in ("can_flush", "can_fua", "can_trim", "can_zero", "can_fast_zero", "can_cache"):
        assert export[flag] is True, flag
    assert export["can_multi_conn"] is True
    assert export["is_read_only"] is False
    assert export["block_size_minimum"] == 512
    extents = json.loads(run("nbdinfo", "--map", "--json", shim.uri))
    data = [(e["offset"], e["length"]) for e in extents if e["type"] == 0]
    # What was never written in a block is a hole of the file, and is told as one.
    assert data == [(2 * MIB, 2 * MIB), (6 * MIB, 64 << 10)]
    assert sum(e["length"] for e in extents) == 64 * MIB


def test_nbdcopy_in_and_out_with_many_connections(shim: ShimProcess, tmp_path: Path) -> None:
    source, back = tmp_path / "in.raw", tmp_path / "out.raw"
    dice = random.Random(1)
    with open(source, "wb") as out:
        out.truncate(64 * MIB)
        for _ in range(40):
            out.seek(dice.randrange(126) * MIB // 2)
            out.write(dice.randbytes(dice.randrange(1, 100) * 512))
    run("nbdcopy", "--connections=4", "--requests=16", str(source), shim.uri)
    run("nbdcopy", "--connections=4", "--requests=16", shim.uri, str(back))
    run("cmp", str(source), str(back))
    closes(shim)
    said = run("qemu-img", "compare", "-f", "raw", "-F", "vpc", str(source), str(shim.image))
    assert "identical" in said
    assert shim.image.stat().st_size < 64 * MIB  # zeros were not written


def test_qemu_img_converts_in_and_out(shim: ShimProcess, tmp_path: Path) -> None:
    source, back = tmp_path / "in.raw", tmp_path / "out.qcow2"
    with open(source, "wb") as out:
        out.truncate(64 * MIB)
        for place in (0, 5 * MIB, 63 * MIB):
            out.seek(place)
            out.write(os.urandom(MIB // 2))
    run("qemu-img", "convert", "-n", "-W", "-f", "raw", "-O", "raw", str(source), shim.uri)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", shim.uri, str(back))
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(source), str(back))
    closes(shim)


def test_nbdkit_passes_on_what_its_clients_ask(shim: ShimProcess) -> None:
    """nbdkit's nbd plugin is one more client; its own client is qemu-io."""
    script = 'qemu-io -f raw -c "write -P 5 0 1M" -c "write -z 64k 64k" -c flush "$uri"'
    script += ' && qemu-io -f raw -c "read -P 5 128k 64k" -c "read -P 0 64k 64k" "$uri"'
    script += ' && nbdinfo --map "$uri"'
    out = run("nbdkit", "-U", "-", "nbd", f"uri={shim.uri}", "shared=true", "--run", script)
    assert "failed" not in out
    wanted = ["0", str(MIB), "0", "data", str(MIB), str(63 * MIB), "3", "hole,zero"]
    assert out.split()[-8:] == wanted
    closes(shim)


@pytest.mark.parametrize("depth", [1, 16])
def test_fio_verifies_what_it_wrote(shim: ShimProcess, tmp_path: Path, depth: int) -> None:
    report = tmp_path / "fio.json"
    run(
        "fio", "--name=v", "--ioengine=nbd", f"--uri={shim.uri}", "--rw=randwrite",
        "--bsrange=512-128k", "--bs_unaligned=0", "--blockalign=512", f"--iodepth={depth}",
        "--size=64m", "--io_size=24m", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1",
        "--verify_state_save=0", "--output-format=json", f"--output={report}",
        f"--randseed={depth}",
    )  # fmt: skip
    text = report.read_text()
    (job,) = json.loads(text[text.index("{") :])["jobs"]
    assert job["error"] == 0
    assert job["read"]["io_bytes"] > 0
    closes(shim)


def test_a_client_can_go_on_over_a_pause_and_a_switch(shim: ShimProcess) -> None:
    qemu_io(shim, "write -P 3 0 1M")
    shim.do("pause")
    words = ["qemu-io", "-f", "raw", shim.uri, "-c", "read -P 3 0 1M", "-c", "write -P 4 0 64k"]
    waiting = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for(lambda: shim.do("status")["waiting"], process=waiting)
    assert waiting.poll() is None
    shim.do("unpause")
    out = waiting.communicate(timeout=20)[0]
    assert b"failed" not in out
    shim.do("deactivate", queue=True)
    waiting = subprocess.Popen([*words[:-4], "-c", "read -P 4 0 64k"], stdout=subprocess.PIPE)
    wait_for(lambda: shim.do("status")["waiting"], process=waiting)
    assert waiting.poll() is None
    shim.do("activate")
    assert b"failed" not in waiting.communicate(timeout=20)[0]
    closes(shim)


def test_kill_9_and_a_new_process_lose_nothing(tmp_path: Path) -> None:
    with ShimProcess(tmp_path) as first:
        first.activate()
        qemu_io(first, "write -P 5 0 3M", "write -P 6 10M 1M")
        first.process.kill()
        first.process.wait()
    with ShimProcess(tmp_path) as second:
        second.activate()
        out = qemu_io(second, "read -P 5 0 3M", "read -P 6 10M 1M", "write -P 7 20M 1M")
        assert "failed" not in out
        closes(second)


def test_guard_off_is_served_and_closed_too(tmp_path: Path) -> None:
    with ShimProcess(tmp_path, "--faithful") as shim:
        shim.do("attach", path=str(shim.image), size=shim.size)
        shim.do("open")
        out = qemu_io(shim, "write -P 5 0 3M", "read -P 5 0 3M", "write -P 6 10M 1M")
        assert "failed" not in out
        closes(shim)


def test_two_processes_do_not_share_a_socket(shim: ShimProcess) -> None:
    out = run(sys.executable, "-m", "vhdtool.tapdisk", "--dir", str(shim.folder), check=False)
    assert "in use by another process" in out
    assert "Traceback" not in out
    assert shim.do("status")["state"] == "active"
