"""Planted faults: each oracle is tried on its own record, changed in one place.

console_faults   Faults to plant in copies of the consoles: what the guest
                 said, where, and when
coverage_faults  Faults to plant where it is counted what a run did: too
                 little, or a refusal that is none
event_faults     Faults to plant in copies of the events and of case.json:
                 one for each rule of the record
faults           Faults to plant in a copy of the image, each with the
                 place that its finding must name
image_faults     Faults to plant in a copy of the closed image, where
                 nobody's data is: its tables and its ends
leftover_faults  Faults to plant in what the hosts hold: each kind of
                 leftover, a blind look, a lost look
metadata_faults  Faults to plant in copies of the snapshots and of the
                 closed image's metadata
plant            Do the oracles see anything at all? Each is tried on its
                 own record with faults planted
record_faults    Faults to plant in a copy of the metadata snapshots and of
                 the events
required         The faults that an oracle must have been tried on before
                 its pass counts, by kind of record
"""
