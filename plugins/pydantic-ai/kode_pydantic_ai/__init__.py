"""A conversation store for Pydantic AI over any backend of kode_core.

::

    from kode_pydantic_ai import KodeConversationStore

    store = KodeConversationStore("sqlite:///data/agents.db")
    conversation = await store.load("chat-1") or Conversation(conversation_id="chat-1")
    result = await agent.run("Hello!", conversation=conversation)
    await store.save(result)
"""

from kode_pydantic_ai.store import KodeConversationStore

__all__ = ["KodeConversationStore"]
