"""The command line: one module a group of commands; it parses, calls and prints."""
