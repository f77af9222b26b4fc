"""A random life of a disk against one bytearray: same bytes, clean check, after each step."""

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.image_tools import clean, content, write
from vhdtool.image.chain.open import open_chain
from vhdtool.image.create.convert import convert
from vhdtool.image.create.differencing import create_child, parent_facts
from vhdtool.image.create.empty import create_dynamic
from vhdtool.image.edit.coalesce import coalesce, fill
from vhdtool.image.edit.modify import modify_parent
from vhdtool.image.edit.resize import resize

KIB = 1024
BLOCK = 512 * KIB
START = 3 * BLOCK + 512 * 7

writes = st.tuples(
    st.just("write"),
    st.lists(
        st.tuples(
            st.integers(0, 5 * BLOCK),
            st.one_of(st.integers(1, 1500), st.just(4096), st.just(BLOCK)),
        ),
        min_size=1,
        max_size=4,
    ),
)
steps = st.one_of(
    writes,
    writes,
    st.tuples(st.just("snapshot"), st.none()),
    st.tuples(st.just("coalesce"), st.booleans()),
    st.tuples(st.just("grow"), st.integers(1, 2 * BLOCK)),
    st.tuples(st.just("shrink"), st.none()),
    st.tuples(st.just("fill"), st.none()),
    st.tuples(st.just("move"), st.none()),
    st.tuples(st.just("flatten"), st.booleans()),
)


class Life:
    """A chain of files, youngest last, and what it must show."""

    def __init__(self, folder: Path, batmap: bool) -> None:
        self.folder = folder
        self.model = bytearray(START)
        self.number = 0
        self.chain = [folder / "0.vhd"]
        create_dynamic(self.chain[0], START, BLOCK, batmap)

    @property
    def top(self) -> Path:
        return self.chain[-1]

    def fresh(self) -> Path:
        self.number += 1
        return self.folder / f"{self.number}.vhd"

    def write(self, requests: list[tuple[int, int]]) -> None:
        done = []
        for index, (offset, length) in enumerate(requests):
            first = min(offset, len(self.model) - 1)
            data = bytes([len(self.chain) * 16 + index + 1]) * min(length, len(self.model) - first)
            self.model[first : first + len(data)] = data
            done.append((first, data))
        write(self.top, *done)

    def snapshot(self, _: None) -> None:
        if len(self.chain) < 5:
            path = self.fresh()
            create_child(path, parent_facts(self.top), block_bytes=BLOCK)
            self.chain.append(path)

    def coalesce(self, whole: bool) -> None:
        if len(self.chain) > 1:
            coalesce(self.top, whole=whole)
            keep = 1 if whole else len(self.chain) - 1
            for path in self.chain[keep:]:
                path.unlink()
            self.chain = self.chain[:keep]

    def grow(self, more: int) -> None:
        if len(self.model) < 20 * BLOCK:
            size = -(-(len(self.model) + more) // 512) * 512
            resize(self.top, size)
            self.model = self.model.ljust(size, b"\0")

    def shrink(self, _: None) -> None:
        with open_chain(self.top) as reader:
            below = reader.layers[1].size if len(reader.layers) > 1 else 512
        size = max(-(-len(self.model.rstrip(b"\0")) // 512) * 512, below, 512)
        if size < len(self.model):
            resize(self.top, size)
            self.model = self.model[:size]

    def fill(self, _: None) -> None:
        fill(self.top)

    def move(self, _: None) -> None:
        if len(self.chain) > 1:
            path = self.fresh()
            self.chain[-2].rename(path)
            self.chain[-2] = path
            modify_parent(self.chain[-1], path)

    def flatten(self, batmap: bool) -> None:
        path = self.fresh()
        with open_chain(self.top) as reader:
            convert(reader, path, "dynamic", BLOCK, batmap)
        for old in self.chain:
            old.unlink()
        self.chain = [path]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.booleans(), st.lists(steps, min_size=1, max_size=12))
def test_life_of_a_disk(batmap: bool, life: list[tuple[str, object]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        disk = Life(Path(name), batmap)
        for kind, argument in life:
            getattr(disk, kind)(argument)
            clean(disk.top)
            assert content(disk.top) == bytes(disk.model), kind
