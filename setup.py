"""Builds the man pages for the wheel; all else is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).resolve().parent))

from vhdtool.cli.man_pages import write_pages

setup(data_files=[("share/man/man1", write_pages("build/man"))])
