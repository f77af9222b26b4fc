"""Settings of all unit tests."""

import os

import pytest
from hypothesis import settings

# A slow example is no failure: other tests and programs keep the processors busy.
settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")


@pytest.fixture(autouse=True)
def quick_flushes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power fails while a test runs: what crash tests replay is recorded above this call."""
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
