"""Two local hosts for the lab: namespaces with an sshd each, joined by a bridge.

control     up, down and status of the local hosts, for the machine that they
            run on
mounts      System calls for mounts and namespaces, without a process for each
options     Options of the local hosts, and their fixed names and addresses
processes   Processes by pid and start time: a pid alone may have been recycled
ssh_files   Keys, known hosts and the ssh_config by which the hosts are reached
state       The state directory of a lab (.lab in the checkout): its hosts, and
            the run that uses them
supervisor  The supervisor, pid 1 of the lab, and the first process of each
            host
"""
