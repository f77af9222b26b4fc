"""The parts of `vhdtool check`, each with one question."""
