"""The built-in backend ``memory``: everything is kept in this process."""
