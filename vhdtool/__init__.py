"""VHD images, a tapdisk shim, and a lab that judges whether a disk survives live migration.

The library is what `__all__` names; docs/vhd.md has an example. All of it is loaded when it is
first used, so that `import vhdtool` costs next to nothing. It needs the standard library only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vhdtool.errors import VhdtoolError as VhdtoolError
    from vhdtool.image.api import Image as Image
    from vhdtool.image.api import check as check
    from vhdtool.image.api import create as create
    from vhdtool.image.api import open as open
    from vhdtool.image.api import snapshot as snapshot
    from vhdtool.image.chain.check import ChainReport as ChainReport
    from vhdtool.image.chain.layers import Extent as Extent
    from vhdtool.image.metadata.findings import Finding as Finding

__version__ = "0.1.0"
_WHERE = {
    "ChainReport": "vhdtool.image.chain.check",
    "Extent": "vhdtool.image.chain.layers",
    "Finding": "vhdtool.image.metadata.findings",
    "Image": "vhdtool.image.api",
    "VhdtoolError": "vhdtool.errors",
    "check": "vhdtool.image.api",
    "create": "vhdtool.image.api",
    "open": "vhdtool.image.api",
    "snapshot": "vhdtool.image.api",
}
__all__ = [  # noqa: PLE0604 - the names are strings
    "__version__",
    *_WHERE,
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
