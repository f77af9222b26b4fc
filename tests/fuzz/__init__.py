"""Damaged images through every command that reads."""
