"""The oracles: a record of a case goes in, a verdict with its findings comes out.

checks/          The five oracles, and what the record says of times and of
                 the depth of the load
contradictions/  Contradictions inside a record: one kind of evidence
                 against another, a module each
evidence/        A case's record as typed values: read from bounded regular
                 files, strictly, and parsed
planted/         Planted faults: each oracle is tried on its own record,
                 changed in one place
readers/         Readers of disk images that the oracles alone use; no code
                 is shared with what wrote them
coverage         Did the run exercise what it is to judge? Too little on
                 either side of a switch proves nothing
finding          What an oracle says: findings, and the result that follows
                 from them
judge            Runs the five oracles on one record, so that the planted
                 faults run the very same code
run              Judges a run: every case directory in it, and what the run
                 as a whole is worth
verdict          One case, one verdict: error > corrupt > inconclusive >
                 refused, consistent
"""
