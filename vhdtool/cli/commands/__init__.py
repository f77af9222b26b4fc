"""The commands of `vhdtool`, one module each.

A module and its function have the name of their command; `main` finds them by it. The folder is
longer than others, so that a reader who knows a command knows its file.

Images, read only:
    info        every field of an image's metadata
    check       the faults of an image and its parents
    scan        the images of a directory as trees
    map         allocated ranges and their offsets
    read        guest data, to standard output or a file
    damage      the guest sectors, partitions and files that damage affects
    meta        a metadata dump as one line of JSON
    diff        two metadata dumps, compared
Images, written:
    create      an empty image
    snapshot    a child over a parent
    convert     between VHD, raw, qcow2 and VHDX
    resize      another virtual size
    coalesce    a child's data into its parent
    fill        every block allocated
    modify      parent, hidden flag, UUID, time stamp
    repair      footers, sizes, batmap and leaked space
Serving:
    serve       an image to NBD clients
    vdi         attach and activate on one of several hosts, as XCP does
    tap         tapdisks, as tap-ctl controls them
Migrations:
    lab         runs the cases of a lab whose hosts are up
    judge       the verdict of a run or a case, derived from its record
    report      a run's verdict as JUnit XML, HTML and a table
    history     the runs of a directory side by side
    pack        a run's images without holes, and back
    hosts       the two local hosts
    machines    two emulated hosts and an NFS server
    guest       the guest that migrates
    bundle      the code that runs on the hosts, as a zip file
The shell:
    completion  the completion script for a shell
"""
