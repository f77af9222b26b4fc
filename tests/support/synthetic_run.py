"""Writes run directories as the lab does, small and without a lab, for the tests of the report."""

import json
from pathlib import Path
from typing import Any

PHASES = ("quiesce", "deactivate", "transfer", "activate", "resume")


class Recorder:
    """Collects a case's events and console; times are ms from the start of the case."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.acks: list[tuple[float, str]] = []
        self.epoch = 0

    def controller(self, at: float, event: str, leg: int = 1, **extra: Any) -> None:
        self._add(at, event, leg, "controller", "controller", None, None, extra)

    def source(self, at: float, event: str, host: str = "alpha", leg: int = 1, **extra: Any) -> int:
        return self._shim(at, event, leg, host, "source", extra)

    def target(self, at: float, event: str, host: str = "beta", leg: int = 1, **extra: Any) -> int:
        return self._shim(at, event, leg, host, "destination", extra)

    def _shim(
        self, at: float, event: str, leg: int, host: str, side: str, extra: dict[str, Any]
    ) -> int:
        epoch = extra.pop("epoch", None)
        if event in ("opened", "activated", "unpaused", "paused", "closed", "deactivated"):
            self.epoch += 1
            epoch = self.epoch
        if event in ("opened", "activated", "unpaused"):
            extra.setdefault("read_mono", 100 + at / 1000)
        self._add(at, event, leg, host, side, {"alpha": 11, "beta": 22}[host], epoch, extra)
        return self.epoch

    def _add(
        self,
        at: float,
        event: str,
        leg: int,
        host: str,
        side: str,
        pid: int | None,
        epoch: int | None,
        extra: dict[str, Any],
    ) -> None:
        stamp = {"mono": 100 + at / 1000, "wall": 1.8e9 + at / 1000}
        who = {"leg": leg, "host": host, "side": side, "pid": pid, "epoch": epoch}
        self.events.append({"event": event, **who, **stamp, **extra})

    def writes(self, host: str, start: float, end: float, pace: float = 4.0) -> None:
        at = start
        while at <= end:
            self.acks.append((at, host))
            at += pace

    def save(self, case_dir: Path, facts: dict[str, Any]) -> None:
        case_dir.mkdir(parents=True)
        self.events.sort(key=lambda event: event["mono"])
        lines = [json.dumps({"seq": n, **event}) for n, event in enumerate(self.events, 1)]
        (case_dir / "events.jsonl").write_text("\n".join(lines) + "\n")
        (case_dir / "case.json").write_text(json.dumps(facts))
        logs, index = {"alpha": b"", "beta": b""}, []
        for n, (at, host) in enumerate(self.acks):
            chunk = {"host": host, "offset": len(logs[host]), "mono": 100 + at / 1000}
            index.append(json.dumps(chunk))
            logs[host] += b"acked %d\r\n" % n
        (case_dir / "console.jsonl").write_text("\n".join(index) + "\n")
        for host, log in logs.items():
            (case_dir / f"console-{host}.log").write_bytes(log)
        guard = "on" if facts["guard"] else "off"
        command = f"make lab STRATEGY={facts['strategy']} SEED={facts['seed']} GUARD={guard}"
        (case_dir / "reproduce.txt").write_text(command + "\n")
        (case_dir / "image.vhd").write_bytes(b"")


def activate(back: bool = False) -> Recorder:
    """Source closes, then destination opens; with `back`, a second leg the other way."""
    r = Recorder()
    r.source(0, "attached", path="/srv/vhdlab/a.vhd", size=64 << 20)
    first = r.source(6, "activated", lease=True)
    r.source(20, "first-request", epoch=first)
    r.controller(600, "migrate-started")
    r.target(620, "attached")
    r.writes("alpha", 30, 1396)
    _switch(r, 1, 1400, "alpha", "beta", first)
    r.controller(1470, "migrated")
    r.writes("beta", 1446, 2396 if back else 1990)
    if back:
        r.controller(1900, "migrate-started", 2)
        r.source(1880, "detached")
        r.target(1920, "attached", "alpha", 2)
        _switch(r, 2, 2400, "beta", "alpha", r.epoch)
        r.writes("alpha", 2446, 2990)
        r.controller(2470, "migrated", 2)
        r.source(2600, "detached", "beta", 2)
        r.target(3000, "deactivated", "alpha", 2, ended=r.epoch, wrote_footer=True)
    else:
        r.source(1500, "detached")
        r.target(2000, "deactivated", ended=r.epoch, wrote_footer=True)
    return r


def _switch(r: Recorder, leg: int, at: float, old: str, new: str, epoch: int) -> None:
    r.controller(at, "suspended", leg, stop_mono=100 + (at - 1.5) / 1000)
    r.source(
        at + 1.4, "deactivated", old, leg, ended=epoch, wrote_footer=True, truncated_to=9 << 20
    )
    taken = r.target(at + 3, "activated", new, leg, lease=True)
    done = 100 + (at + 11) / 1000
    r.controller(at + 13, "resumed", leg, completed_mono=done)
    r.target(at + 44, "first-request", new, leg, epoch=taken, request="read")


def overlap(guard: bool = False) -> Recorder:
    """The destination opens before the switch, the source closes after it; or is refused."""
    r = Recorder()
    r.source(0, "attached")
    first = r.source(6, "activated", lease=guard)
    r.source(20, "first-request", epoch=first)
    r.controller(600, "migrate-started")
    r.target(620, "attached")
    early = r.target(640, "opened", mode="plain")
    r.writes("alpha", 30, 1396)
    r.controller(1400, "suspended", stop_mono=101.3985)
    if guard:
        r.target(1402, "refused", op="may-serve", reason="alpha holds the lease at epoch 1")
        r.controller(1404, "cancelled", reason="the destination may not serve")
        r.writes("alpha", 1406, 1990)
        r.target(1450, "detached")
        r.source(2000, "deactivated", ended=first, wrote_footer=True)
        return r
    r.controller(1412, "resumed", completed_mono=101.41)
    r.target(1440, "first-request", epoch=early, request="read")
    r.writes("beta", 1443, 1990)
    r.source(1700, "deactivated", ended=first, wrote_footer=True, truncated_to=5 << 20)
    r.source(1705, "detached")
    r.target(2000, "deactivated", ended=early, wrote_footer=True)
    return r


def retry() -> Recorder:
    """Leg 1 fails after the source has deactivated; leg 2 succeeds."""
    r = Recorder()
    r.source(0, "attached")
    first = r.source(6, "activated", lease=True)
    r.source(20, "first-request", epoch=first)
    r.controller(500, "migrate-started")
    r.target(520, "attached")
    r.writes("alpha", 30, 996)
    r.controller(1000, "suspended", stop_mono=100.9985)
    r.source(1002, "deactivated", ended=first)
    r.controller(1004, "fault-injected", fault="destination's QEMU killed")
    again = r.source(1012, "activated", lease=True)
    r.controller(1030, "cancelled", reason="destination lost")
    r.writes("alpha", 1034, 1996)
    r.source(1033, "first-request", epoch=again)
    r.target(1040, "detached")
    r.controller(1500, "migrate-started", 2)
    r.target(1520, "attached", leg=2)
    _switch(r, 2, 2000, "alpha", "beta", again)
    r.writes("beta", 2046, 2700)
    r.source(2100, "detached", leg=2)
    r.target(2710, "deactivated", leg=2, ended=r.epoch)
    return r


def reopen() -> Recorder:
    """The destination opens early, and reads everything again after the source has closed."""
    r = Recorder()
    r.source(0, "attached")
    first = r.source(6, "activated", lease=True)
    r.source(20, "first-request", epoch=first)
    r.controller(600, "migrate-started")
    r.target(620, "attached")
    early = r.target(640, "opened", mode="plain")
    r.writes("alpha", 30, 1396)
    r.controller(1400, "suspended", stop_mono=101.3985)
    r.source(1401.4, "deactivated", ended=first, wrote_footer=True)
    r.target(1402.2, "paused", ended=early)
    again = r.target(1403, "unpaused", lease=True)
    r.controller(1413, "resumed", completed_mono=101.411)
    r.target(1444, "first-request", epoch=again, request="write")
    r.writes("beta", 1446, 1990)
    r.source(1500, "detached")
    r.controller(1502, "migrated")
    r.target(2000, "deactivated", ended=again, wrote_footer=True)
    return r


def entry(name: str, guard: bool, expected: str, verdict: str, **more: Any) -> dict[str, Any]:
    """An entry of verdict.json, plausible for its verdict; `more` overrides any of it."""
    good = verdict in ("consistent", "refused")
    result = "pass" if good else "fail" if verdict == "corrupt" else "skip"
    base: dict[str, Any] = {
        "name": name,
        "case": f"{name}-{'on' if guard else 'off'}-s1",
        "guard": guard,
        "seed": 1,
        "direction": "alpha->beta",
        "attempts": 1,
        "expected": expected,
        "verdict": verdict,
        "why": {
            "corrupt": "243 acknowledged writes cannot be read back; 31 BAT entries vanished."
        }.get(verdict, f"This case is {verdict}."),
        "oracles": {
            oracle: {"result": result, "findings": []}
            for oracle in ("content", "metadata", "structure", "activation")
        },
        "planted": {"faults": 9, "caught": 9},
        "writes": {"acked": 480, "acked_after_resume": 137, "lost": 0, "never_written": 0},
        "blocks_allocated": {"before_suspend": 171, "after_resume": 68},
        "active_overlap_epochs": 0,
        "margin_ms": 1.6,
        "blackout_ms": {"total": 48.0}
        | dict(zip(PHASES, (4.0, 1.4, 11.0, 1.6, 31.0), strict=True)),
    }
    if verdict == "corrupt":
        base["writes"]["lost"] = 243
        base |= {"margin_ms": -1060.0, "active_overlap_epochs": 2}
        base["oracles"]["structure"]["result"] = "pass"
        base["oracles"]["content"]["findings"] = [
            {
                "code": "lost-write",
                "severity": "corrupt",
                "block": b,
                "sectors": [b * 4096 + 4088, 8],
                "message": f"write {b} was acknowledged; its sectors read as zeros",
            }
            for b in range(3, 46)
        ]
        base["oracles"]["metadata"]["findings"] = [
            {
                "code": "bat-vanished",
                "severity": "corrupt",
                "block": b,
                "sectors": [b * 4096, 4096],
                "message": "BAT entry was 20488 at source-closed and is free at all-closed",
            }
            for b in (3, 17)
        ]
    return base | more


def make(run_dir: Path) -> Path:
    """A run with a case of each kind. Returns its directory."""
    entries = []

    def add(record: Recorder | None, case: dict[str, Any], **facts: Any) -> None:
        entries.append(case)
        if record is not None:
            known = {key: case[key] for key in ("guard", "seed", "expected")}
            record.save(run_dir / case["case"], {"strategy": case["name"], **known, **facts})

    add(overlap(), entry("overlap", False, "corrupt", "corrupt"))
    refused = {"blackout_ms": dict.fromkeys(("total", *PHASES)), "margin_ms": None}
    add(overlap(guard=True), entry("overlap", True, "refused", "refused", **refused))
    add(activate(), entry("activate", True, "consistent", "consistent"))
    add(activate(back=True), entry("activate-back", True, "consistent", "consistent"))
    add(retry(), entry("activate-retry", True, "consistent", "consistent"))
    few = "Only 2 blocks were allocated after the switch; 8 are needed."
    add(reopen(), entry("reopen", True, "consistent", "inconclusive", why=few))
    dead = entry("hold", True, "consistent", "error", why="beta's QEMU died.", attempts=2)
    for key in ("oracles", "planted", "writes", "blackout_ms"):
        dead[key] = {}
    log = ["qemu-system-x86_64: terminating on signal 11", "<script>alert('x')</script>"]
    add(Recorder(), dead, error={"what": "QEMU on beta ended with status -11", "log": log})
    (run_dir / dead["case"] / "events.jsonl").unlink()
    verdict = {
        "schema": 1,
        "run": run_dir.name,
        "hypervisor": "kvm",
        "accelerator": "tcg",
        "storage": "tmpfs shared by both hosts",
        "as_expected": False,
        "strategies": entries,
    }
    (run_dir / "verdict.json").write_text(json.dumps(verdict))
    return run_dir
