"""XCP's VDI operations on a host, with the shim that the runner has started there.

Standard library only.
"""

from pathlib import Path
from typing import Any

from vhdtool.errors import UsageError
from vhdtool.vdi.operations import Vdi

OPERATIONS = ("attach", "activate", "deactivate", "detach")


def operate_vdi(
    operation: str, image: str, host: str, folder: str, control: str, **arguments: Any
) -> dict[str, Any]:
    """The agent's operation `vdi`: one of the four; the shim's status after it.

    `control`: the shim's control socket; `folder`: of the run on this host.
    """
    vdi = Vdi(image, host, Path(folder), control=Path(control))
    if operation == "attach":
        return vdi.attach(**arguments)
    if operation == "activate":
        return vdi.activate(**arguments)
    if operation == "deactivate":
        return vdi.deactivate(**arguments)
    if operation == "detach":
        return vdi.detach(**arguments)
    raise UsageError(f"no VDI operation {operation!r}; there are {', '.join(OPERATIONS)}")
