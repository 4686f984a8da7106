"""The sources of a configuration: URLs and paths, environment variables, ``kode.toml``."""
