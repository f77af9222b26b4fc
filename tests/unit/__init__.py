"""Tests of the package alone: no root, no peers, seconds."""
