"""The tapdisk shim: serves a VHD over NBD, and only while it may.

lease.py: who may write, kept on the shared storage · disk.py: the states of a disk and their
rules · nbd_wire.py: the protocol without sockets · nbd.py: the server · control.py: the JSON
control socket · __main__.py: one process a disk. Standard library only: it runs on lab hosts.
"""
