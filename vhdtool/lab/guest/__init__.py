"""The lab's guest: a Debian kernel and an initramfs whose only job is to write and read back.

build         Builds the guest: Debian's cloud kernel, and an initramfs
              written here byte by byte
load          The program inside the guest: writes the schedule, acknowledges
              on the console, reads back
memory_state  A guest that is booted once and then started from its memory:
              0.2 s instead of four
slots         The deep half of the load inside the guest: every slot of
              depth.py has a request in flight
"""
