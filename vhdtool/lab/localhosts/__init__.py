"""Two local hosts for the lab: namespaces with an sshd each, joined by a bridge.

control     up, down and status of the local hosts, as seen from the machine
            that they live on
mounts      The mount calls of the local hosts, straight to the kernel: no
            `mount` process for each
options     What can be chosen about the local hosts, and what is fixed
processes   Processes by pid and start time: a pid alone may have been recycled
ssh_files   Keys, known hosts and the ssh_config by which Ansible, the runner
            and people reach the hosts
state       The state directory of a lab (.lab in the checkout): who made it,
            who is using it
supervisor  What runs inside: the supervisor, pid 1 of the lab, and the first
            process of each host
"""
