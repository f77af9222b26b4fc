"""The tapdisk shim: serves an image over NBD while it holds the lease, and hands it over.

service/      The processes around `vhdtool serve`: its command, systemd,
              Prometheus
tapctl/       tap-ctl: blktap's control protocol, and the disks behind it
__main__      The shim process: `python3 -m vhdtool.tapdisk --dir DIR --name
              NAME --host HOST [--faithful]`
access        Settings of a shim, and how it opens an image: which lock, read
              or write
claim         The claim of a disk on its image: image lock and lease, taken,
              checked, and lost
control       The JSON control socket: one line a request, one line a reply
disk          A disk: the operations that an operator or a toolstack asks for
ending        Waits for the end of a server process, which a signal or another
              thread asks for
events        Events of a disk: stamped once, sent to the log and to every
              listener in one order
failpoint     Kill points: VHDTOOL_FAILPOINT=name[:n] kills the process the
              n-th time it gets there
gate          Serves requests, holds them, or refuses them; drains
router        The requests of a disk: through the gate to the open image
serve         Serves one image to NBD clients, from activation to a clean close
session       The open image of a disk: read with or without the lease,
              reopened, and closed
states        The states of a disk as a table of transitions
"""
