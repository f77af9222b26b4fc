"""Contradictions inside a record, one kind of evidence against another in each module.

life: events against the grammar · epochs: epochs against one another · points: snapshots against
the events around them · blocks: allocations against snapshots and image · growth: one snapshot
against the next · talk: the consoles against hosts and events · claims: case.json against events.
"""
