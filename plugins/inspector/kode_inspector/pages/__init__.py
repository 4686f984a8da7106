"""The pages, an area to a file."""
