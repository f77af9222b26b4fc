"""tap-ctl: blktap's control protocol, and the disks that it drives.

change_log   Changed-block tracking as blktap keeps it: a bit for each 64 KiB
             that was ever written
client       What `tap-ctl` does: asks tapdisks over their control sockets, and
             keeps the minors
daemon       A tapdisk as toolstacks know it: disks (minors) in one process,
             blktap's control protocol
filters      What tap-ctl puts between requests and an image: a log of changes
             (-C), a mirror (-2)
images       The images of a tapdisk: what an argument names, how it is opened,
             what keeps it from that
minor        A minor of a tapdisk: attached, with or without an open image,
             running or paused
minor_files  The minors of a control directory: files `tapdisk-<n>`, as blktap
             has them without its module
process      `tapdisk`: the process that `tap-ctl spawn` starts, ours and
             blktap's own
stats        What `stats` tells of a minor, spelled as tapdisk spells it
wire         The control protocol of blktap's tapdisk, without sockets:
             544-byte messages and their values
"""
