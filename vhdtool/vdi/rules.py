"""What keeps a host from activating a VDI, and who may overrule that. No I/O on the image.

A writer excludes every other host, and a reader excludes writers. While an image is paused, gets
another parent, or is being activated by another host, an activation waits.
"""

from collections.abc import Iterable

from vhdtool.errors import ActivationRefused
from vhdtool.leases.owner import Owner
from vhdtool.vdi.keys import ACTIVATING, PAUSED, READ_WRITE, RELINKING, Key, Keys

_WAITS = {
    RELINKING: "gets another parent",
    PAUSED: "is paused",
    ACTIVATING: "is being activated",
}
_CURES = {
    RELINKING: "wait for the end of `vhdtool vdi relink` there",
    PAUSED: "`vhdtool vdi unpause` it there",
    ACTIVATING: "wait for the end of `vhdtool vdi activate` there",
}


def conflicts(keys: Keys, name: str, mode: str, shim: Owner) -> list[Key]:
    """Hosts' keys that exclude this one; `name` is our host's key, `shim` its process."""
    return [
        key
        for key in keys.values()
        if key.is_host
        and key.owner != shim
        and (key.name == name or READ_WRITE in (key.mode, mode))
    ]


def delays(keys: Keys) -> list[Key]:
    """Keys for whose end an activation waits."""
    return [keys[name] for name in _WAITS if name in keys]


def refusal(image: str, key: Key, waited: float | None = None) -> ActivationRefused:
    """The refusal that a key is the reason of. It names the holder, and what helps."""
    if key.is_host:
        what, cure = f"is active ({key.mode})", "deactivate it there"
    else:
        what, cure = _WAITS[key.name], _CURES[key.name]
    text = f"{image}: {what} on {key.owner}"
    if waited is not None:
        text += f", still after {waited:g} s"
    text += f"; {cure}"
    if key.state == "unknown":
        text += f"; if that host is certainly dead, --force {key.number}"
    return ActivationRefused(text)


def overruled(image: str, keys: Keys, in_the_way: Iterable[Key], force: int) -> list[Key]:
    """The keys of a host that the operator says is dead, named by the number of one in the way.

    Raises ActivationRefused for another number, and for a host that is proven alive.
    """
    named = [key for key in in_the_way if key.number == force]
    if not named:
        (first, *_) = in_the_way
        raise ActivationRefused(f"{refusal(image, first)}; --force {force} names another key")
    if any(key.state == "living" for key in named):
        raise ActivationRefused(
            f"{image}: --force {force}: {named[0].owner} is not dead, its process runs on this "
            "machine; deactivate it there"
        )
    return [key for key in keys.values() if any(key.is_of_machine(one) for one in named)]
