"""The outputs of a report.

files      writes the report files of a run, all or none
page       report.html: one self-contained page, rendered from a template
case_view  a case as the page shows it: drawings, events, findings and links
html       the template environment that the pages share
junit      junit.xml: a testcase for each case
table      the tables on the terminal
soak_page  soak.html: the cases of a soak as strip plots
soak       soak.json: medians over N runs, and the failure rate that N runs exclude
"""
