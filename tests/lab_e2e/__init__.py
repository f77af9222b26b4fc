"""Tests of whole labs: root, local hosts, real migrations."""
