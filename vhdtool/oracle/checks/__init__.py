"""The five oracles' checks, and the figures of a record: blackout and requests in flight.

activation  Never two hosts active at once, proved from epochs alone
content     The disk holds every acknowledged write, and nothing else
growth      Compares a snapshot with a later one: metadata only grows
in_flight   Requests in flight when the guest was stopped, and what was checked
leftovers   A host that the guest has left holds no more than before the case
metadata    Snapshots only grow, the closed image equals the last of them
structure   The strict check of the closed image
timing      The blackout, in total and by phase
"""
