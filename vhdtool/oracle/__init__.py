"""The oracles: from the record of a case to a verdict with findings.

checks/          The checks of the five oracles, and the figures of a record
contradictions/  Contradictions inside a record: one kind of evidence against
                 another
coverage         Whether a case did enough to be judged
evidence/        The record of a case as typed values
finding          Findings of an oracle, and the result that follows from them
judge            Runs the five oracles on the evidence of one case
packing          Packs the images of a run, and unpacks them
planted/         Planted faults: each oracle is tried on copies of the record
readers/         Readers of disk images, for the oracles alone
run              Judges a run: every case directory in it
verdict          From the outcomes of the oracles to the verdict of a case
"""
