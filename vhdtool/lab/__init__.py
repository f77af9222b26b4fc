"""The migration lab: live migrations of a writing guest in a given order, on record.

case/         One case: a guest writes, migrates once or more, and everything
              is put on record
guest/        The lab's guest: a Debian kernel and an initramfs with the write
              load as its only program
hosts/        A lab host: the connection to it, the agent that runs there, and
              the shim as seen from here
hypervisors/  Hypervisors that run the guest and migrate it: one protocol, and
              a driver each
live_checks/  Checks of the hosts by testinfra, over SSH, while a case is
              live and after it
localhosts/   Two local hosts for the lab: namespaces with an sshd each,
              joined by a bridge
machines/     Emulated machines for the lab, with kernels of their own: two
              hosts and an NFS server
campaign      All cases of a run: configuration in, `runs/<id>/` out, a line
              for each case
commands      Short commands on any machine of the lab, with one error for
              every failure
config        The configuration of a run: read from JSON, and checked before
              anything is made
custom        The strategy of an order that a user gives, refused where it
              makes no sense
log           The lines of a run in a log: one a case, with the time
options       The options of a run: names, types, bounds, defaults and help,
              and the cases they ask for
reproduce     The command that repeats a case where it was run
strategies    The strategies, as data: steps, expectations and texts
"""
