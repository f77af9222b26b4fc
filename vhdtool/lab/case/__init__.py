"""One case: a guest writes, migrates once or more, and everything is put on record.

console         The guest's serial console on both hosts, stamped by one
                process as the bytes arrive
held            Looks at what both hosts hold of a case, for the record;
                never while the guest stands still
image_location  Where the image of a case lies: in a file that all hosts
                see, or on a LUN over that file
iscsi_target    A LUN for a case: an iSCSI target on one host, whose bytes
                are the image's file
plan            What one case is to do, and the two hosts in the roles that
                they have now
points          Snapshots of the image's metadata at the points of a case
record          What a case leaves behind: the only thing that the oracles
                get to see
rollback        A migration that ends at its source: after a refusal, and
                after a fault on purpose
runner          One case: a writing guest migrates once or more in the order
                of a strategy, all on record
"""
