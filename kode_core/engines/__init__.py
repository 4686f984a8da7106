"""The two engines that come with the core: memory, and JSON files."""
