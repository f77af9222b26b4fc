"""`vhd-util`: the command line of blktap's tool, on top of our library.

Commands, options, output and exit codes (an errno) are those of blktap's tool, so that scripts
written for it need no change; xapi-project/sm's vhdutil.py matters most. Standard output is that
of the real tool. Longer explanations of an error go to standard error, which such scripts do not
parse.

main.py           entry point: the table of commands, errors to exit codes
create.py         create, snapshot
query.py          query
read.py           read
scan.py           scan
check.py          check
modify.py         set, modify
resize.py         resize, fill
coalesce.py       coalesce
repair.py         repair, revert
key_hash.py       key
metadata_text.py  footer, header, locators and batmap as `vhd-util read -p` prints them
lvm_volumes.py    volumes of an LVM group, read without activating them
conventions.py    arguments, numbers and errors as blktap's tool has them
"""
