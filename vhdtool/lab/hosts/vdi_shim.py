"""A shim that the controller drives by VDI operations on its host."""

from typing import Any

from vhdtool.errors import LabError
from vhdtool.lab.hosts.connection import RemoteError
from vhdtool.lab.hosts.shim import OP_TIMEOUT, REFUSALS, Shim

OPERATIONS = ("attach", "activate", "deactivate", "detach")


class VdiShim(Shim):
    """The agent runs those four operations, which change the keys and drive the shim."""

    image = ""
    """The path of the image on the host; known from the first attach on."""

    def call(self, op: str, **arguments: Any) -> dict[str, Any]:
        if op not in OPERATIONS or not (op == "attach" or self.image):
            return super().call(op, **arguments)
        if op == "attach":
            self.image = arguments["path"]
            arguments = {"size": arguments["size"], "kind": arguments["format"]}
        place = {"host": self.host.name, "folder": self.folder, "control": self.control}
        try:
            self.host.call("vdi", OP_TIMEOUT, operation=op, image=self.image, **place, **arguments)
        except RemoteError as error:
            kind = REFUSALS.get(error.kind, LabError)
            message = str(error).removeprefix(f"{self.host.name}: ")
            raise kind(f"{self.host.name}: vdi {op}: {message}") from error
        # The shim answers on the stream of its events, behind those of the operation.
        return super().call("status")
