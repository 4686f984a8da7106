import asyncio

from kode_core import AgentInfo, Message, create_extended_store


async def main() -> None:
    async with create_extended_store("sqlite:///data/agents.db") as store:
        await store.save_turn(
            "anna",
            append=[Message.user("Hello"), Message.assistant("Welcome to the travel desk. Where to?")],
            info=AgentInfo(agent_id="anna", template_id="travel-desk"),
        )
        for message in await store.load_messages("anna"):
            print(message.role, "-", message.text)


asyncio.run(main())
