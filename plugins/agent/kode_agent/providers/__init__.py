"""The providers: each over the official client of its service, and one that says what a script says.

``kode_agent.providers.openai`` needs ``kode-agent[openai]``, ``kode_agent.providers.anthropic`` needs
``kode-agent[anthropic]``.
"""
