"""Other processes of a check: the scripts that they run, and a store in one of them that is called from here."""
