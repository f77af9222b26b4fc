"""The record of a case as typed values: read from regular files of bounded size, and parsed.

allocations  The blocks that the shims allocated, as the events report them
case         case.json: what was run, and the points at which metadata is dumped
console      The guest's console: joined from both hosts, parsed line by line
depth        The deep half of the write load: one request in flight in each slot
events       events.jsonl: each line as a typed event
files        Reads the files of a record: regular files only, bounded in size
grammar      Which event may follow which, in a leg and in a shim
holdings     held/<host>-<point>.json: what a host held of the case at one point
json_fields  Strict parsing of JSON values
legs         The legs of a case, assembled from its events
load         The write load, as far as the guest acknowledged it
record       Loads the record of a case, and lists what is missing or torn
schedule     The paced half of the write load: (seed, n) -> (sector, length, content)
snapshots    metadata/<leg>-<point>.json: metadata dumps at named points
"""
