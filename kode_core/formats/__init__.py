"""Conversations that other programs recorded, converted to records for a store; one module for each format."""
