"""One case: a guest writes, migrates once or more, and everything is put on record.

console         The guest's serial console on both hosts, stamped by one
                process as the bytes arrive; commands to the load
image_location  The location of a case's image: a file that all hosts see,
                or a LUN over that file
iscsi_target    A LUN for a case: an iSCSI target on one host, whose bytes
                are the image's file
migration       One leg: two sides, the steps of the strategy, and the
                hypervisor's transfer
observations    What is observed from outside: metadata snapshots, and what
                each host holds
plan            What one case is to do, decided before anything runs
record          What a case leaves behind: the only thing that the oracles
                get to see
rollback        A migration that ends at its source: after a refusal, or
                after a fault on purpose
runner          One case from its first process to its last
"""
