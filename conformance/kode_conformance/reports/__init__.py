"""Reports of a run: on the terminal, as files, as tables of several stores, and the lists of clauses and checks."""
