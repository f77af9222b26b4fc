"""A case's record as typed values: read from bounded regular files, strictly, and parsed.

attempts     The attempts to migrate, as the events tell of them
case         case.json: what was run, and what a metadata point is
console      What the guest said: the consoles of both hosts joined, then read
             line by line
depth        The deep half of the write load: many requests that are always in
             flight, each in a slot
events       The events of a case: one typed value a line, and what is wrong
             with the file
files        Reads the files of a record: only regular files, only up to a
             size, never through a link
grammar      The grammar of events: which may follow which, in the life of a
             leg and in that of a shim
held         held/<host>-<point>.json: what a host held of the case at a point
             in time
json_fields  Strict reading of JSON values: what has the wrong type or range is
             torn, never guessed
load         The write load of a case, as far as the guest's console tells of
             it
record       Loads the record of a case into typed values, strictly, and says
             what is missing or torn
schedule     The write load as a pure function: (seed, n) -> (sector, length,
             content)
snapshots    metadata/<leg>-<point>.json: the image's metadata as the lab saw
             it at a point in time
"""
