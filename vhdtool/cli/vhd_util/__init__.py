"""`vhd-util`: the command line of blktap's tool, on top of our library.

Commands, options, output and exit codes (an errno) are those of blktap's tool, so that scripts
written for it need no change; xapi-project/sm's vhdutil.py matters most. Standard output is that
of the real tool. Longer explanations of an error go to standard error, which such scripts do not
parse.

main           entry point: commands by name, errors to exit codes
table          the commands and their options: usage, completion and parsing follow it
completion     the commands as click's, for completion by a shell and for the man page
create         commands create and snapshot
query          command query
read           command read
scan           command scan
check          command check
modify         commands set, modify and resize
coalesce       commands coalesce and fill
repair         commands repair and revert
key_hash       command key: the hash that identifies an encryption key
metadata_text  footer, header, locators and batmap as `vhd-util read -p` prints them
lvm_volumes    volumes of an LVM group, read without activating them
conventions    arguments, numbers and errors as blktap's tool has them
"""
