"""Planted faults: each oracle is tried on copies of the case's own record, each with a fault.

activation_faults  A second host that activates while another is active
console_faults     The consoles: other lines, other hosts, other times
content_faults     The data in a copy of the image
coverage_faults    What a case did: too little, or a refusal that does not count
event_edits        Edits of a list of events
event_faults       The events and case.json: one fault for each rule of the record
fault              A planted fault, and the findings that name it
image_faults       Tables, header and footers of a copy of the closed image
leftover_faults    The holdings of the hosts
metadata_faults    The snapshots, the closed image's metadata, and the allocations
plant              Plants every fault, and counts those that are caught
required           The faults that must have been planted, by kind of record
"""
