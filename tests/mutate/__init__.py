"""`make mutate`: mutants of the oracles' code, and whether planted faults or tests see them.

mutated         Runs in a process of its own, with one module replaced by a mutant
syntax_mutants  Mutants of a module, by one change of its syntax tree each
"""
