"""What a run of the lab is asked for: read from JSON, checked before anything is touched."""

import json
from dataclasses import dataclass
from pathlib import Path

from vhdtool.errors import UsageError
from vhdtool.handover.hosts import HostConfig
from vhdtool.handover.strategies import IMAGES, STRATEGIES, Strategy, named

MIB = 1 << 20


@dataclass(frozen=True)
class LabConfig:
    """What the role `migration` (or a caller) asks for; sizes in bytes."""

    run_dir: Path
    hosts: tuple[HostConfig, HostConfig]
    shared_dir: str
    kernel: str
    initrd: str
    ssh_config: Path | None = None
    storage: str = "a directory"
    strategies: tuple[str, ...] = ("all",)
    guard: str = "default"
    seed: int = 1
    repeats: int = 1
    image: str = "vhd"
    """The kind of the guest's image: vhd or qcow2."""
    image_bytes: int = 2048 * MIB
    block_bytes: int = 2 * MIB
    profile: str = "paced"
    pace_us: int = 4000
    hypervisor: str = "kvm"
    accelerator: str = "auto"
    migration_port: int = 4444
    live_tests: Path | None = None

    @classmethod
    def load(cls, path: Path) -> "LabConfig":
        """Reads the JSON file. Raises UsageError that names the key that is wrong."""
        try:
            raw = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: no configuration of a lab: {error}") from error
        try:
            raw.pop("keep", None)
            guest, load = raw.pop("guest"), raw.pop("load", {})
            hosts = tuple(HostConfig(**host) for host in raw.pop("hosts"))
            for key in ("ssh_config", "live_tests"):
                raw[key] = Path(raw[key]) if raw.get(key) else None
            config = cls(
                run_dir=Path(raw.pop("run_dir")),
                hosts=hosts,  # type: ignore[arg-type]
                strategies=tuple(raw.pop("strategies", ["all"])),
                kernel=guest["kernel"],
                initrd=guest["initrd"],
                **load,
                **raw,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{path}: bad configuration of a lab: {error}") from error
        config.validate()
        return config

    def validate(self) -> None:
        """Raises UsageError for what cannot be run, before anything is touched."""
        if len(self.hosts) != 2:
            raise UsageError(f"a lab has two hosts, not {len(self.hosts)}")
        for what, value, least in (
            ("seed", self.seed, 0),
            ("repeats", self.repeats, 1),
            ("image size", self.image_bytes, 64 * MIB),
            ("block size", self.block_bytes, 512 << 10),
            ("pace", self.pace_us, 500),
        ):
            if not isinstance(value, int) or value < least:
                raise UsageError(f"{what}: {value} is too small, the least is {least}")
        if self.block_bytes & (self.block_bytes - 1):
            raise UsageError(f"block size: {self.block_bytes} is no power of two")
        if self.image not in IMAGES:
            raise UsageError(f"image: {self.image!r} is none of {', '.join(IMAGES)}")
        if self.guard not in ("default", "on", "off"):
            raise UsageError(f"guard: {self.guard!r} is none of default, on, off")
        if self.hypervisor != "kvm":
            raise UsageError(f"hypervisor: {self.hypervisor!r} cannot be driven; there is kvm")
        if self.profile != "paced":
            raise UsageError(f"load profile: {self.profile!r} does not exist; there is paced")
        self.cases()

    def left_out(self) -> list[str]:
        """Orders of "all" that cannot run on this kind of image, and why."""
        if "all" not in self.strategies:
            return []
        return [
            f"{one.name}: {one.not_on[self.image]}"
            for one in STRATEGIES.values()
            if not one.runs_on(self.image)
        ]

    def cases(self) -> list[tuple[Strategy, bool]]:
        """(strategy, guard) of each case, in the order of the table."""
        if "all" in self.strategies:
            strategies = [one for one in STRATEGIES.values() if one.runs_on(self.image)]
        else:
            strategies = [named(name) for name in self.strategies]
        chosen = []
        for strategy in strategies:
            if not strategy.runs_on(self.image):
                raise UsageError(f"strategy {strategy.name}: {strategy.not_on[self.image]}")
            if self.guard == "default":
                guards = [True] if strategy.safe else [False, True]
            else:
                guards = [self.guard == "on"]
            chosen += [(strategy, guard) for guard in guards]
        return chosen
