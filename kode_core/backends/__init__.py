"""The plugins of the two backends that come with the core."""
