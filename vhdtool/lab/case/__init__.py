"""One case: a guest writes, migrates once or more, and everything is put on record.

console         The guest's serial console on both hosts: a log with arrival
                times, and the load's lines
image_location  The location of a case's image: a file that all hosts see,
                or a LUN over that file
iscsi_target    A LUN for a case: an iSCSI target on one host, whose bytes
                are the image's file
migration       One leg: two sides, the steps of the strategy, and the
                hypervisor's transfer
observations    Observations from outside: metadata snapshots, and the
                holdings of each host
plan            The plan of one case, decided before anything runs
record          The record of a case, as it is written: the only thing that
                the oracles see
rollback        A migration that ends at its source: after a refusal, or
                after a fault on purpose
runner          One case: a writing guest migrates once or more in the order
                of a strategy
"""
