"""The images of a directory as trees of parents and children."""

import os
from dataclasses import dataclass, field
from typing import Any

from vhdtool.errors import NotAVhd, VhdtoolError
from vhdtool.image.chain.locate_parent import find_parent
from vhdtool.image.metadata.read import read_metadata
from vhdtool.image.metadata.signatures import signature
from vhdtool.storage import FileStorage
from vhdtool.vhd.footer import DIFFERENCING


@dataclass(slots=True)
class Node:
    """One image. `parent` is a path, which may lie outside the scanned directories.

    A qcow2 or VHDX image has its format as `kind`, and neither uuid nor virtual size.
    """

    path: str
    uuid: str | None = None
    kind: str | None = None
    virtual_size: int = 0
    file_size: int = 0
    hidden: bool = False
    parent: str | None = None
    error: str | None = None
    children: list["Node"] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """All fields in JSON types, with the children nested."""
        return {
            "image": self.path,
            "uuid": self.uuid,
            "type": self.kind,
            "virtual_size": self.virtual_size,
            "file_size": self.file_size,
            "hidden": self.hidden,
            "parent": self.parent,
            "error": self.error,
            "children": [child.as_dict() for child in self.children],
        }


def scan(paths: list[str]) -> list[Node]:
    """The roots of all trees in some files and directories, in order of their paths.

    In directories, files that are neither VHD, qcow2 nor VHDX are ignored; a path that was given
    is reported if it is not a VHD.
    A child whose parent was not scanned is a root; so is one member of a loop.
    """
    nodes: dict[str, Node] = {}
    for path in paths:
        if os.path.isdir(path):
            for name in sorted(os.listdir(path)):
                full = os.path.join(path, name)
                if os.path.isfile(full):
                    _add(nodes, full, given=False)
        else:
            _add(nodes, path, given=True)
    roots = []
    for key, node in nodes.items():
        parent = nodes.get(os.path.realpath(node.parent)) if node.parent is not None else None
        if parent is None or _heads_loop(nodes, parent, key):
            roots.append(node)
        else:
            parent.children.append(node)
    return roots


def _heads_loop(nodes: dict[str, Node], node: Node | None, key: str) -> bool:
    """Whether the parents from `node` on form a loop in which `key` is the first path."""
    seen: list[str] = []
    while node is not None:
        current = os.path.realpath(node.path)
        if current == key:
            return all(key <= other for other in seen)
        if current in seen:
            return False
        seen.append(current)
        node = nodes.get(os.path.realpath(node.parent)) if node.parent is not None else None
    return False


def _add(nodes: dict[str, Node], path: str, given: bool) -> None:
    try:
        nodes.setdefault(os.path.realpath(path), _read_node(path))
    except NotAVhd as error:
        node = Node(path, error=str(error)) if given else _other_image(path)
        if node is not None:
            nodes[os.path.realpath(path)] = node
    except VhdtoolError as error:
        nodes[os.path.realpath(path)] = Node(path, error=str(error))


def _other_image(path: str) -> Node | None:
    """The node of a qcow2 or VHDX image; None for any other file."""
    with FileStorage(path) as storage:
        known = signature(storage)
        if known is None or known.format is None:
            return None
        return Node(path, kind=known.format, file_size=storage.size())


def _read_node(path: str) -> Node:
    with FileStorage(path) as storage:
        meta = read_metadata(storage)
        node = Node(
            path,
            str(meta.footer.uuid),
            meta.footer.type_name,
            meta.size,
            meta.ends.file_size,
            bool(meta.footer.hidden),
        )
        if meta.footer.disk_type == DIFFERENCING and meta.header is not None:
            try:
                node.parent = find_parent(path, storage, meta.header)
            except VhdtoolError as error:
                node.error = str(error)
    return node
