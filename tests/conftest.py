"""What all tests need: signals as on a terminal, and reports that go between processes."""

import signal
from collections.abc import Generator

import pytest


def pytest_configure() -> None:
    """Take SIGINT, which a job in the background ignores, and all that it starts."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape lone surrogates in captured output: the processes of xdist send UTF-8 only."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report
