"""The unit tests' own tools (a raw NBD client) are here too, also when only these tests run."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "unit"))
