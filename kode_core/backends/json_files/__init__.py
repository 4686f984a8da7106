"""The built-in backend ``json``: a folder with a journal for each agent."""
