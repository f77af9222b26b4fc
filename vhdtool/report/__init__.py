"""Reports of a run: what a person reads, and what a CI reads.

drawing/     Drawings of a case: the migration to scale, and each blackout
output/      The files and tables that a run leaves: report.html, junit.xml,
             soak.json, the terminal
case         One case of a run as the report sees it: its entry in
             verdict.json, typed and never missing
ending       The beginning and every end of a run's record: a verdict and a
             report, whatever happens between
figures      How figures are written, the same in the terminal, the page and
             the drawings
json_fields  Reading values of unknown shape: whatever is in a record, a report
             must still come out
record       A run directory -> Run: verdict.json and, for each case, what its
             directory holds
texts        What strategies, verdicts and limits mean, in plain words for the
             head of the report
"""
