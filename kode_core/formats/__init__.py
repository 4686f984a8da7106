"""Conversations that other programs recorded, read as records for a store; one module for each format."""
