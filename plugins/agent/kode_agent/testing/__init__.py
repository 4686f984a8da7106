"""A model server for tests and demonstrations: it speaks the protocols of real providers and says what a script says.

``ScriptedServer`` listens on loopback and answers requests of the OpenAI API (chat completions and responses), of the
Anthropic API (messages) and of the Gemini API (``generateContent``), streaming or whole. Clients and frameworks reach
it by their ``base_url``. It needs ``kode-agent[testing]``.
"""

from kode_agent.testing.script import Call as Call
from kode_agent.testing.script import Fault as Fault
from kode_agent.testing.script import Reply as Reply
from kode_agent.testing.script import Request as Request
from kode_agent.testing.script import Script as Script
from kode_agent.testing.server import ScriptedServer as ScriptedServer
