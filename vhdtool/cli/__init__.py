"""The command line: parses arguments, calls the library, prints the result.

main         entry point of `vhdtool`: commands by name, errors to exit codes
commands/    one module for each command of `vhdtool`
vhd_util/    `vhd-util`: the commands, output and exit codes of blktap's tool
tap_ctl      `tap-ctl`: the same for blktap's tap-ctl
arguments    arguments and options that several commands have
findings     findings and verdicts of a check, for one image and for many
output       JSON, tables and the progress bar
notes        notes on standard error about orphan blocks and disagreeing sizes
salvage      lost ranges and orphan blocks, as text and as exported files
pyz          the whole program as one file for a rescue shell
man_pages    man pages, made from the help of the commands
suggestions  what an unknown command or option may have meant
qemu_img     conversion to and from qcow2 and VHDX through qemu-img
standard_streams  standard input, output and error: closed, gone or full; an image coming in
signals      clean-up when a signal ends a command
"""
