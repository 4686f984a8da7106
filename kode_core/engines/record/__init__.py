"""The record engine: a complete store over a database that changes one record at a time."""
