"""Sessions of the OpenAI Agents SDK in a store of kode_core.

::

    from agents import Agent, Runner
    from kode_openai_agents import KodeSession

    session = KodeSession("user-1", "sqlite:///data/agents.db")
    result = Runner.run_sync(Agent(name="Assistant"), "Hello!", session=session)
"""

from kode_openai_agents.items import is_failure as is_failure
from kode_openai_agents.session import KodeSession as KodeSession

__all__ = ["KodeSession", "is_failure"]
