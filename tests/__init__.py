"""Tests, and the tools that the make targets run."""
