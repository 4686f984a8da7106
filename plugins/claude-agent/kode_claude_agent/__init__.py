"""Transcripts of the Claude Agent SDK in a store of kode_core.

::

    from claude_agent_sdk import ClaudeAgentOptions
    from kode_claude_agent import KodeSessionStore

    options = ClaudeAgentOptions(session_store=KodeSessionStore("sqlite:///data/agents.db"))
"""

from kode_claude_agent.store import KodeSessionStore as KodeSessionStore

__all__ = ["KodeSessionStore"]
