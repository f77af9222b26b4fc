"""300 damaged images of a fixed seed; `make fuzz` runs 10,000."""

import subprocess
import sys
from pathlib import Path

FUZZ = Path(__file__).resolve().parents[1] / "fuzz" / "fuzz_vhd.py"


def test_damaged_images_bring_no_traceback_hang_or_wrong_exit_code() -> None:
    done = subprocess.run(
        [sys.executable, FUZZ, "--seed", "20110213", "--cases", "300"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
