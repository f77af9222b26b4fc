"""The five oracles, and what the record says of times and of the depth of the load.

activation  The activation oracle: never two hosts active at once, proved from
            epochs alone
content     The acknowledged-write oracle: what was acknowledged is there, and
            nothing else is
flight      How many requests were in flight when the guest was stopped, and
            what was checked on each leg
growth      One snapshot of an image against a later one: metadata only grows.
            Written for records
leftovers   The leftovers oracle: a host that the guest has left holds no more
            than it did before
metadata    The metadata oracle: between two snapshots of one image, metadata
            only ever grows
structure   The structure oracle: the strict check of the image layer on the
            closed image; of a qcow2 image
timing      How long the guest was silent, in all and by phase, in milliseconds
"""
