"""Where a configuration is read: URLs and paths, environment variables, ``kode.toml``."""
