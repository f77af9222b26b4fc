"""Contradictions inside a record: one kind of evidence against another, a module each.

blocks    Allocations that the shims told of, against each snapshot and the closed
          image
claims    What case.json says of a case, against the events and the command in
          reproduce.txt
consoles  The consoles against hosts, events and times: what the guest said, it
          said where it ran
epochs    Epochs accounted for: each number between the first and the last belongs
          to one event
life      The events parsed by the grammar: the legs of the controller, and the
          life of each shim
points    Snapshots against events: each point is taken right after the event that
          it is named for
"""
