"""XCP's VDI operations on shared storage: keys beside the image, over the lease.

keys        The keys of a VDI: which host has an image active, and what holds
            up an activation
local       A VDI on this host: its folder, its shim, and one operation at a
            time
operations  The operations of a VDI on this host: attach, activate, deactivate,
            detach and more
rules       What keeps a host from activating a VDI, and who may overrule that
shim        The shim of a VDI on this host: its process, its sockets, and its
            control operations
status      The status of a VDI, as one host sees it: its shim, the keys of all
            hosts, and the lease
"""
