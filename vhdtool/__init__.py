"""VHD images, a tapdisk shim, and a lab that judges whether a disk survives live migration.

The library is what `__all__` names; docs/vhd.md has an example. All of it is loaded when it is
first used, so that `import vhdtool` costs next to nothing. It needs the standard library only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vhdtool.errors import ClosedError as ClosedError
    from vhdtool.errors import CorruptImage as CorruptImage
    from vhdtool.errors import DamageError as DamageError
    from vhdtool.errors import ImageExists as ImageExists
    from vhdtool.errors import LockedError as LockedError
    from vhdtool.errors import NotAVhd as NotAVhd
    from vhdtool.errors import SplitBrain as SplitBrain
    from vhdtool.errors import UncleanImage as UncleanImage
    from vhdtool.errors import UnsupportedImage as UnsupportedImage
    from vhdtool.errors import UsageError as UsageError
    from vhdtool.errors import VhdtoolError as VhdtoolError
    from vhdtool.image.api.change import Repair as Repair
    from vhdtool.image.api.change import repair as repair
    from vhdtool.image.api.change import resize as resize
    from vhdtool.image.api.change import undo_repair as undo_repair
    from vhdtool.image.api.create import convert as convert
    from vhdtool.image.api.create import create as create
    from vhdtool.image.api.create import snapshot as snapshot
    from vhdtool.image.api.examine import check as check
    from vhdtool.image.api.examine import damage as damage
    from vhdtool.image.api.examine import info as info
    from vhdtool.image.api.examine import map as map
    from vhdtool.image.api.examine import salvage as salvage
    from vhdtool.image.api.image import Image as Image
    from vhdtool.image.api.image import open as open
    from vhdtool.image.chain.check import ChainReport as ChainReport
    from vhdtool.image.chain.layers import Extent as Extent
    from vhdtool.image.metadata.findings import CheckReport as CheckReport
    from vhdtool.image.metadata.findings import Finding as Finding
    from vhdtool.image.salvage.damage import Damage as Damage
    from vhdtool.image.salvage.reader import Lost as Lost
    from vhdtool.image.salvage.reader import Salvage as Salvage
    from vhdtool.storage.base import StorageError as StorageError

__version__ = "0.1.0"
_WHERE = {
    "ChainReport": "vhdtool.image.chain.check",
    "CheckReport": "vhdtool.image.metadata.findings",
    "ClosedError": "vhdtool.errors",
    "CorruptImage": "vhdtool.errors",
    "Damage": "vhdtool.image.salvage.damage",
    "DamageError": "vhdtool.errors",
    "Extent": "vhdtool.image.chain.layers",
    "Finding": "vhdtool.image.metadata.findings",
    "Image": "vhdtool.image.api.image",
    "ImageExists": "vhdtool.errors",
    "LockedError": "vhdtool.errors",
    "Lost": "vhdtool.image.salvage.reader",
    "NotAVhd": "vhdtool.errors",
    "Repair": "vhdtool.image.api.change",
    "Salvage": "vhdtool.image.salvage.reader",
    "SplitBrain": "vhdtool.errors",
    "StorageError": "vhdtool.storage.base",
    "UncleanImage": "vhdtool.errors",
    "UnsupportedImage": "vhdtool.errors",
    "UsageError": "vhdtool.errors",
    "VhdtoolError": "vhdtool.errors",
    "check": "vhdtool.image.api.examine",
    "convert": "vhdtool.image.api.create",
    "create": "vhdtool.image.api.create",
    "damage": "vhdtool.image.api.examine",
    "info": "vhdtool.image.api.examine",
    "map": "vhdtool.image.api.examine",
    "open": "vhdtool.image.api.image",
    "repair": "vhdtool.image.api.change",
    "resize": "vhdtool.image.api.change",
    "salvage": "vhdtool.image.api.examine",
    "snapshot": "vhdtool.image.api.create",
    "undo_repair": "vhdtool.image.api.change",
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
