"""One small service in five frameworks: messages are added under the agent's lock, and listed."""
