"""Two local hosts for the lab: namespaces with an sshd each, joined by a bridge.

control   up, down and status, as the command line and the role call them
inside    what runs inside: the supervisor (pid 1 of the lab) and each host's first process
mounts    the few mount calls that `inside` makes
sshfiles  keys, known hosts and the ssh_config by which everybody reaches the hosts
state     the state directory (.lab): who made the lab, who is using it
procs     processes by pid *and* start time, so that a recycled pid is never taken for ours

Everything lives in one outer namespace whose first process is the supervisor: when that process
is gone, by whatever signal, the kernel removes every process, mount and link of the lab.
"""
