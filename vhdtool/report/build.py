"""Writes a run's report files; what `vhdtool report` and the lab's last step call."""

import os
import tempfile
from io import StringIO
from pathlib import Path

from rich.console import Console

from vhdtool.errors import UsageError
from vhdtool.report.junit import junit
from vhdtool.report.page import page
from vhdtool.report.record import Run
from vhdtool.report.table import show


def write_files(run: Run) -> tuple[Path, Path]:
    """Writes junit.xml and report.html beside verdict.json; returns their paths.

    Raises UsageError when they cannot be written. A reader never sees half a file.
    """
    plain = StringIO()
    show(run, Console(file=plain, width=120, no_color=True, force_terminal=False))
    documents = {
        run.path / "junit.xml": junit(run, plain.getvalue()),
        run.path / "report.html": page(run).encode("utf-8", errors="replace"),
    }
    for path, content in documents.items():
        _replace(path, content)
    xml, html = documents
    return xml, html


def _replace(path: Path, content: bytes) -> None:
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(file.fileno(), 0o644)
                file.write(content)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be written ({error.strerror}); free space or fix its permissions, "
            "then: vhdtool report DIR"
        ) from error
