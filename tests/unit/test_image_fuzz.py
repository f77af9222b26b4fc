"""300 damaged images of a fixed seed; `make fuzz` runs 10,000."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_damaged_images_bring_no_traceback_or_hang() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.fuzz_vhd", "--seed", "20110213", "--cases", "300"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
