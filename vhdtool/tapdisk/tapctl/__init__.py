"""tap-ctl: blktap's control protocol, and the disks behind it.

change_log   blktap's changed-block tracking: a bit for each 64 KiB that was
             ever written
client       The commands of `tap-ctl`: requests to tapdisks, and minors
daemon       A tapdisk as toolstacks know it: disks (minors) in one process
filters      Filters between requests and image: a mirror (-2), and the base
             of the change log (-C)
images       How a `type:/path` argument is read, opened and filtered
minor        A minor of a tapdisk: attached, with or without an open image,
             running or paused
minor_files  The minors of a control directory: files `tapdisk-<n>`, as blktap
             makes without its module
process      `tapdisk`: the process that `tap-ctl spawn` starts
stats        The reply to `stats`, in tapdisk's spelling of JSON
wire         The control protocol: 544-byte messages. No I/O
"""
