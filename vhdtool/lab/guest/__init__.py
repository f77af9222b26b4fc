"""The lab's guest: a Debian kernel and an initramfs with the write load as its only program.

build         Builder of the guest: Debian's cloud kernel, and an initramfs
              written here byte by byte
load          The load, the program inside the guest: it writes, acknowledges
              on the console, and reads back
memory_state  The saved memory of a booted guest: a case starts from it in
              0.2 s instead of four
slots         The deep half of the load: every slot of depth.py has a request
              in flight
"""
