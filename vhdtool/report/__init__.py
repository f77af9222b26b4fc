"""The report of a run: for people a page and tables, for a CI junit.xml.

lifecycle     begins and ends a run's record, so that each run has a verdict and a report
history/      `vhdtool history`: the runs of a directory side by side
output/       report.html, junit.xml, soak.json, the tables on the terminal
drawing/      the diagram of a case: the migration to scale, and each blackout
run           loads a run directory: verdict.json, and the files of each case
software      software.json: with which vhdtool a run was made
wording       sentences and figures that the terminal, the page and the drawings share
case          a case's entry in verdict.json as typed values
lenient_json  typed values from JSON of unknown shape, with a default for each wrong type
"""
