"""A session service for the Agent Development Kit (ADK) over any backend of kode_core.

::

    from kode_adk import KodeSessionService

    runner = Runner(app_name="hello", agent=agent, session_service=KodeSessionService("sqlite:///data/agents.db"))
"""

from kode_adk.registry import register
from kode_adk.service import KodeSessionService

__all__ = ["KodeSessionService", "register"]
