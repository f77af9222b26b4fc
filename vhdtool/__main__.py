"""`python -m vhdtool`."""

from vhdtool.cli.main import main

main()
