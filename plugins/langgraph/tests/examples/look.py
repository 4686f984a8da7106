from kode_core import agent_key
from kode_core.sync import open_store

with open_store("sqlite:///data/agents.db") as store:
    for message in store.load_messages(agent_key("langgraph", "chat-1")):
        print(message.role, message.text)
