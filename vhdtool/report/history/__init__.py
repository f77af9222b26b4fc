"""`vhdtool history`: the runs of a directory side by side.

page       history.html: one self-contained page, rendered from a template
summary    the summary and the comparison of two runs on the terminal
as_json    the same figures as JSON values
grid       the grid of verdicts as the page shows it: months, columns, cells
bands      margin and blackout of each order over time, as drawings
compare    two runs compared: options, verdicts, figures
orders     each order in all runs: rates with bounds, first bad run, whether it is flaky
retention  removes old runs, so that a nightly job does not fill its disk
runs       reads the runs of a directory, and names those that cannot be read
"""
