"""A web chat on FastAPI; see docs/guides/web-chat.md."""
