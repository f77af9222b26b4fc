"""Changes of the consoles: other lines, other hosts, other times."""

from collections.abc import Callable, Iterator

from tests.tamper.draft import CONTRADICTS, DOUBTFUL, EITHER, FAILED, SAME, Change, Draft

Chunk = tuple[str, float, bytes]
TORN = CONTRADICTS | FAILED
"""A panic in the record is an error too: it says nothing about the disk."""


def console_changes(draft: Draft) -> Iterator[Change]:
    chunks = draft.console_chunks()
    acks = [n for n, chunk in enumerate(chunks) if chunk[2].startswith(b"acked")]
    if not acks:
        acks = [n for n, chunk in enumerate(chunks) if b"acked" in chunk[2]]
    for n in (acks[5], acks[len(acks) // 2], acks[-3]):
        yield _change(f"console {n}: gone", lambda p, n=n: p.pop(n))
        yield _change(f"console {n}: doubled", lambda p, n=n: p.insert(n, p[n]))
        yield _change(f"console {n}: on the other host", lambda p, n=n: _host(p, n, n + 1, draft),
                    EITHER)  # fmt: skip
    for seconds in (-1000, 1000):
        yield _change(f"console: all {seconds:+} s", lambda p, s=seconds: _late(p, 0, s))
    yield _change("console: the second half +1000 s", lambda p: _late(p, len(p) // 2, 1000),
                EITHER)  # fmt: skip
    yield _change("console: one +1000 s", lambda p: _late(p, acks[3], 1000, acks[3] + 1))
    yield _change("console: times in reverse", _reverse)
    first, second = draft.case["hosts"][:2]
    for host in (first, second):
        yield _change(f"console: all on {host}", lambda p, h=host: _all_on(p, h),
                    SAME if all(chunk[0] == host for chunk in chunks) else CONTRADICTS)  # fmt: skip
    yield _change("console: hosts swapped", lambda p: _swapped(p, first, second))
    yield _change("console: of an unknown host", lambda p: _all_on(p, "gamma"))
    yield _change("console: the end of an unknown host", lambda p: _all_on(p, "gamma", acks[-5]))
    yield from _lines(chunks)
    yield from _logs(draft)


def _change(
    name: str, change: Callable[[list[Chunk]], object], right: frozenset[str] = CONTRADICTS
) -> Change:
    def apply(draft: Draft) -> None:
        chunks = draft.console_chunks()
        change(chunks)
        draft.write_console(chunks)

    return Change(name, right, apply)


def _host(chunks: list[Chunk], start: int, end: int, draft: Draft) -> None:
    for n in range(start, end):
        host, mono, data = chunks[n]
        chunks[n] = (draft.other(host), mono, data)


def _late(chunks: list[Chunk], start: int, by: float, end: int | None = None) -> None:
    for n, (host, mono, data) in enumerate(chunks[:end]):
        if n >= start:
            chunks[n] = (host, mono + by, data)


def _reverse(chunks: list[Chunk]) -> None:
    times = [mono for _, mono, _ in chunks][::-1]
    chunks[:] = [(host, at, data) for (host, _, data), at in zip(chunks, times, strict=True)]


def _all_on(chunks: list[Chunk], host: str, start: int = 0) -> None:
    chunks[start:] = [(host, mono, data) for _, mono, data in chunks[start:]]


def _swapped(chunks: list[Chunk], one: str, other: str) -> None:
    names = {one: other, other: one}
    chunks[:] = [(names[host], mono, data) for host, mono, data in chunks]


def _lines(chunks: list[Chunk]) -> Iterator[Change]:
    """Additional lines: at the end, in the middle, before `stopped`."""
    text = b"".join(data for _, _, data in chunks)
    done = next(line for line in text.split(b"\n") if line.startswith(b"readback done"))
    checked = int(done.split()[2])
    after: tuple[tuple[str, bytes, frozenset[str]], ...] = (
        ("a second read-back, good", b"readback done %d 0" % checked, CONTRADICTS),
        ("a second read-back, bad", b"readback done %d 4" % checked, CONTRADICTS),
        ("a bad sector", b"readback bad 3 77", CONTRADICTS),
        ("a write after the end", b"acked 100000", CONTRADICTS),
        ("a second start", b"start 1", CONTRADICTS),
        ("a second stop", b"stopped 5", CONTRADICTS),
        ("an error", b"error 5 5", CONTRADICTS),
        ("an I/O error of the kernel", b"[ 9.1] blk_update_request: I/O error, dev vda", DOUBTFUL),
        ("a buffer error of the kernel", b"Buffer I/O error on dev vda, lost write", DOUBTFUL),
        ("a panic", b"[ 9.1] Kernel panic - not syncing", FAILED),
        ("an oops", b"BUG: unable to handle page fault", FAILED),
        ("other words", b"hello from the initramfs", SAME),
    )
    for name, line, right in after:
        yield _change(
            f"console: {name} at the end", lambda p, line=line: _add(p, len(p), line), right
        )
    early = b"readback done %d 7" % checked
    yield _change("console: a bad read-back before the good one", lambda p: _before(p, early))
    for text in (b"stopped", b"start", b"readback done", b"ready"):
        right = SAME if text == b"ready" else CONTRADICTS
        yield Change(f"console: no `{text.decode()}`", right, lambda d, n=text: _without(d, n))
    yield Change("console: another seed", CONTRADICTS, lambda d: _replace(d, b"start ", b"start 9"))
    yield Change("console: more sectors read back", CONTRADICTS,
                 lambda d: _replace(d, b"readback done ", b"readback done 9"))  # fmt: skip
    yield Change("console: a sector was read back wrong", CONTRADICTS,
                 lambda d: _replace(d, b"readback done %d 0" % checked,
                                    b"readback done %d 1" % checked))  # fmt: skip


def _add(chunks: list[Chunk], at: int, line: bytes) -> None:
    host, mono, _ = chunks[at - 1]
    chunks.insert(at, (host, mono, line + b"\r\n"))


def _before(chunks: list[Chunk], line: bytes) -> None:
    """Inserts before the line `readback done`, which may be in several chunks."""
    joined = b""
    for n, (_, _, data) in enumerate(chunks):
        joined += data
        if joined.endswith(b"\n") and b"stopped" in joined:
            _add(chunks, n + 1, line)
            return


def _without(draft: Draft, start: bytes) -> None:
    """Removes a line, and adjusts the offsets of later chunks."""
    for host, log in draft.logs.items():
        kept = [line for line in log.splitlines(keepends=True) if not line.startswith(start)]
        _rewrite(draft, host, log, b"".join(kept))


def _replace(draft: Draft, old: bytes, new: bytes) -> None:
    for host, log in draft.logs.items():
        _rewrite(draft, host, log, log.replace(old, new))


def _rewrite(draft: Draft, host: str, old: bytes, new: bytes) -> None:
    """Adjusts offsets after the first difference by the change of length."""
    by = len(new) - len(old)
    at = next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), len(new))
    for chunk in draft.chunks:
        if chunk["host"] == host and chunk["offset"] > at:
            chunk["offset"] = max(chunk["offset"] + by, at)
    draft.logs[host] = new


def _logs(draft: Draft) -> Iterator[Change]:
    def write(name: str, data: bytes) -> Callable[[Draft], object]:
        return lambda d: (d.path / name).write_bytes(data)

    panic = b"[    3.0] Kernel panic - not syncing: fatal exception\r\n"
    yield Change("console: a log of an unknown host with a panic", TORN,
                 raw=write("console-gamma.log", panic))  # fmt: skip
    yield Change("console: a log of an unknown host", CONTRADICTS,
                 raw=write("console-gamma.log", b"acked 1\r\n"))  # fmt: skip
    yield Change("harmless: an empty console", SAME, raw=write("console-gamma.log", b""))
    for host in draft.logs:
        path = f"console-{host}.log"
        if draft.logs[host]:
            yield Change(f"console: {path} gone", CONTRADICTS,
                         raw=lambda d, path=path: (d.path / path).unlink())  # fmt: skip
            yield Change(f"console: {path} cut", CONTRADICTS,
                         raw=lambda d, path=path: _cut(d, path))  # fmt: skip
        else:
            yield Change(f"console: bytes in {path}", TORN, raw=write(path, panic))
    yield Change(
        "console.jsonl: gone", CONTRADICTS, raw=lambda d: (d.path / "console.jsonl").unlink()
    )
    yield Change("console.jsonl: a line gone", EITHER,
                 lambda d: d.chunks.pop(len(d.chunks) // 2))  # fmt: skip
    yield Change("console.jsonl: its first line gone", CONTRADICTS,
                 lambda d: d.chunks.pop(0))  # fmt: skip


def _cut(draft: Draft, name: str) -> None:
    data = (draft.path / name).read_bytes()
    (draft.path / name).write_bytes(data[: len(data) // 2])
