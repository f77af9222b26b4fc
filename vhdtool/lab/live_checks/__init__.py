"""Checks of the hosts by testinfra, over SSH, while a case is live and after it.

plugin      The pytest plugin: reads what the runner says of the hosts, and
            finds the lab's processes there
run         Starts pytest with these checks for a case, and says which failed
test_after  After a case: nothing of it is left on the hosts but the image
test_live   While a case is live: the guest runs at the destination, the
            source is not closed yet
"""
