"""The tapdisk shim: serves a VHD over NBD while it holds the lease, and hands it over.

tapctl/       tap-ctl: blktap's control protocol, and the disks that it drives
__main__      One shim process: `python3 -m vhdtool.tapdisk --dir DIR --name
              NAME --host HOST [--faithful]`
access        How a disk's image is opened: with which lock, for reading or
              for writing
control       The JSON control socket: a line a request, a line a reply,
              events in between
disk          A disk of the shim: its states, and the rules by which they
              change
events        Events of a disk, stamped once, told to the log and to all who
              listen, in one order
failpoint     Kill points: with VHDTOOL_FAILPOINT=name[:n] the process dies
              the n-th time it gets there
gate          The gate before a disk: lets requests through, holds them, or
              turns them away
metrics_http  The figures of metrics.py where Prometheus fetches them. Loaded
              only when they are asked for
router        The requests of a disk: which image serves them, and what a lost
              lease does to them
serve         One image served to NBD clients by one process, from activation
              to a clean close
session       One metadata read of a disk: how it begins (with or without the
              lease), and how it ends
"""
