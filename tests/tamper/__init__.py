"""`make tamper`: changes real records, and compares each verdict with those that are right.

case       Changes of case.json, of whole files, and of files beside them
console    Changes of the consoles
draft      A working copy of a record, and one change of it
events     Changes of events.jsonl
holdings   Changes of the hosts' holdings
image      Changes of the image
snapshots  Changes of the snapshots
"""
