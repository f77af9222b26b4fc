"""The second command of the package, `vhd-util`: blktap's command line on our library.

Commands, options, output and exit codes (an errno) are those of blktap's tool, so that scripts
written for it need no change; xapi-project/sm's vhdutil.py is the one that matters most.
What the real tool prints is on standard output. Our own, longer explanation of an error goes to
standard error, where such scripts do not parse anything.
"""
