"""Write the report files of a run, all or none."""

import os
import tempfile
from collections.abc import Collection, Mapping
from io import StringIO
from pathlib import Path

from rich.console import Console

from vhdtool.errors import UsageError
from vhdtool.report.output.junit import junit_xml
from vhdtool.report.output.page import render_page
from vhdtool.report.output.soak_page import render_soak_page
from vhdtool.report.output.table import NO_TERMINAL, print_tables
from vhdtool.report.run import Run


def write_files(
    run: Run, others: Mapping[Path, bytes] | None = None, draw: Collection[str] = ()
) -> tuple[Path, Path]:
    """Write junit.xml and report.html beside verdict.json, and `others`; return their paths.

    A run with soak.json gets soak.html too.

    `draw` names cases that the page draws in any event.

    The files are replaced at the end, so a full disk leaves the old ones and no reader meets half
    a file. Raises UsageError when they cannot be written.
    """
    plain = StringIO()
    print_tables(run, Console(file=plain, width=NO_TERMINAL, no_color=True, force_terminal=False))
    xml, html = run.path / "junit.xml", run.path / "report.html"
    documents = {
        xml: junit_xml(run, plain.getvalue()),
        html: render_page(run, draw).encode("utf-8", errors="replace"),
        **(others or {}),
    }
    if run.soak:
        soak = render_soak_page(run).encode("utf-8", errors="replace")
        documents[run.path / "soak.html"] = soak
    parts: dict[Path, str] = {}
    try:
        for path, content in documents.items():
            parts[path] = write_beside(path, content)
        for path in documents:
            os.replace(parts[path], path)
            del parts[path]
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be written ({error.strerror}); free space or fix its permissions, "
            "then: vhdtool report DIR"
        ) from error
    finally:
        for part in parts.values():
            os.unlink(part)
    return xml, html


def write_beside(path: Path, content: bytes) -> str:
    """Write the content to a temporary file in the same directory; return its name."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(content)
    except BaseException:
        os.unlink(name)
        raise
    return name
