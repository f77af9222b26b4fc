"""The files and tables that a run leaves: report.html, junit.xml, soak.json, the terminal.

files  Writes a run's report files; what `vhdtool report` and the lab's last step
       call
junit  junit.xml: a testcase for each case, for whatever shows test results in a CI
page   report.html: one page that needs nothing else, from the template and the run
soak   soak.json: what N runs of each case allow to state, and the medians of their
       figures
table  The terminal's tables: a line a case, then what was not as expected, then
       where the report is
"""
