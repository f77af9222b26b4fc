"""The migration lab: runs live migrations of a writing guest in a given order, and records them.

case/         One case: a guest writes, migrates once or more, and everything
              is put on record
guest/        The lab's guest: a Debian kernel and an initramfs whose only job
              is to write and read back
hosts/        A lab host: the connection to it, the agent that runs there, and
              the shim as seen from here
hypervisors/  Hypervisors that run the guest and migrate it, a driver each
live_checks/  Checks of the hosts by testinfra, over SSH, while a case is
              live and after it
localhosts/   Two local hosts for the lab: namespaces with an sshd each,
              joined by a bridge
campaign      All cases of a run: configuration in, `runs/<id>/` out, a line
              of progress for each step
config        The configuration of a run: read from JSON, checked before
              anything is touched
options       The options of a run: their names, what each may be, and which
              cases they ask for
strategies    The orders of storage operations, as data. Adding a strategy is
              adding a list
"""
