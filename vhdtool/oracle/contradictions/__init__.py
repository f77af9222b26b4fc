"""Contradictions inside a record: one kind of evidence against another. All of them are doubts.

allocations      The allocations of the shims, against each snapshot and the closed image
case_json        case.json, against the events and the command in reproduce.txt
consoles         The consoles, against the hosts, events and times
epochs           Epochs, against one another: each number belongs to one event
event_order      The events, against their grammar: states of the legs and of each shim
snapshot_points  The snapshots, against the events that make their points due
"""
