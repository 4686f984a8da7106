"""Brings the sessions of a file of ADK's own service, and shows one of them."""

import asyncio

from kode_adk import KodeSessionService
from kode_adk.importing import open_sessions

from kode_core import create_extended_store
from kode_core.formats.importing import import_foreign


async def main() -> None:
    async with create_extended_store("sqlite:///data/agents.db") as store:
        async with open_sessions("sessions.db") as sessions:
            async for outcome in import_foreign(sessions, store):
                print(outcome.agent_id, outcome.outcome, outcome.damaged)
        service = KodeSessionService(store)
        session = await service.get_session(app_name="weather", user_id="ada", session_id="chat-1")
        print(session.state, len(session.events))


if __name__ == "__main__":
    asyncio.run(main())
