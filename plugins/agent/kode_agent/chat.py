"""``kode chat``: talk to an agent in the terminal."""

from __future__ import annotations

import asyncio
import importlib
import re
import shlex
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Annotated, Any, Final, TypeVar

import typer

from kode_agent.agent import Agent
from kode_agent.control import is_decision
from kode_agent.errors import AgentBusyError, AgentError, NothingToDoError, TemplateError
from kode_agent.offline import TEMPLATE, offline
from kode_agent.provider import Provider
from kode_agent.providers.anthropic import AnthropicProvider
from kode_agent.providers.openai import OpenAIProvider
from kode_agent.template import Template
from kode_agent.terminal import Terminal
from kode_core import ConfigurationError, KodeError, StoredEvent
from kode_core.cli.completion import complete_agent
from kode_core.cli.opening import StoreOption, default_store, open_store
from kode_core.cli.output import one_line, print_note, visible
from kode_core.cli.queries import run

__all__ = ["EXAMPLES", "chat"]

T = TypeVar("T")

EXAMPLES: Final = {
    "chat": (
        "kode chat",
        "kode chat --provider openai --model gpt-5-mini --agent support-1",
        "kode chat --provider openai --base-url http://127.0.0.1:11434/v1 --model qwen3",
        "kode chat --provider anthropic --model claude-sonnet-5-5 --template my_agents:SUPPORT",
    )
}

_HELP: Final = """/fork [SNAPSHOT]  go on in a copy of this agent, or of a snapshot of it
/resume AGENT     go on with another agent of this template
/snapshot [NAME]  keep a point to fork from
/go               have a message answered that waits for its answer
/status           tokens, steps, open questions
/quit             end; Ctrl-C interrupts an answer"""
_PATIENCE: Final = 5.0


def chat(
    agent: Annotated[
        str | None,
        typer.Option("--agent", help="Go on with this agent, or create it.", autocompletion=complete_agent),
    ] = None,
    provider: Annotated[str, typer.Option(help="scripted (no model, no network), openai or anthropic.")] = "scripted",
    model: Annotated[str | None, typer.Option(help="The model; openai and anthropic need it.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Another server with the provider's protocol.")] = None,
    template: Annotated[
        str | None, typer.Option(metavar="MODULE:NAME", help="A Template of yours, with its tools.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt of the built-in template.")] = None,
    store: StoreOption = None,
) -> None:
    """Talk to an agent: answers stream, tools are shown, and calls that need an approval are asked for.

    The conversation is in the store at every moment: end it at will, and go on with --agent. Keys come from
    OPENAI_API_KEY and ANTHROPIC_API_KEY. Commands begin with a slash; /help lists them.
    """
    chosen = _template(template, system)
    asked = None if provider == "scripted" else provider
    named = {"provider": asked, "model": model, "base-url": base_url, "template": template, "system": system}
    run(_chat(_provider(provider, model, base_url), chosen, agent, store, _again(store, **named)))


def _provider(name: str, model: str | None, base_url: str | None) -> Provider:
    if name == "scripted":
        print_note("the scripted provider answers: --provider openai or anthropic asks a model")
        return offline()
    if name not in ("openai", "anthropic"):
        raise ConfigurationError(f"--provider is scripted, openai or anthropic, not {name!r:.40}")
    if model is None:
        raise ConfigurationError(f"--provider {name} needs --model")
    kind: Any = OpenAIProvider if name == "openai" else AnthropicProvider
    made: Provider = kind(model, base_url=base_url)
    return made


def _template(named: str | None, system: str | None) -> Template:
    if named is None:
        return TEMPLATE if system is None else Template(TEMPLATE.id, system, TEMPLATE.tools)
    module, colon, name = named.partition(":")
    if not colon or system is not None:
        raise ConfigurationError("--template is MODULE:NAME, such as my_agents:SUPPORT, and has its own system prompt")
    sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), name)
    except TemplateError:
        raise
    except Exception as exc:
        raise ConfigurationError(f"--template {named}: {type(exc).__name__}: {exc}") from exc
    if not isinstance(found, Template):
        raise ConfigurationError(f"--template {named} is no Template but {type(found).__name__}")
    return found


async def _chat(
    provider: Provider, template: Template, agent_id: str | None, target: str | None, options: Sequence[str]
) -> None:
    async with open_store(target, create=True) as store:
        if agent_id is None:
            agent = await Agent.create(provider=provider, store=store, template=template)
        else:
            making = partial(Agent.resume_or_create, agent_id, provider=provider, store=store, template=template)
            agent = await _patiently(agent_id, making)
        await _Chat(agent, options).until_quit()


async def _patiently(agent_id: str, work: Callable[..., Awaitable[T]]) -> T:
    """Do it at once, or say that another process runs the agent, and wait for it."""
    try:
        return await work(wait_ms=0)
    except AgentBusyError:
        print_note(f"another process runs agent {agent_id}, or was killed: waiting for up to 16 s")
        return await work()


def _again(target: str | None, **options: str | None) -> list[str]:
    """The options that go on with the agent as this command has it; a password in a URL is left out."""
    store = default_store.get() if target is None else target
    given = {"store": store, **options}
    return [
        word for name, value in given.items() if value is not None for word in (f"--{name}", _without_secret(value))
    ]


def _without_secret(text: str) -> str:
    text = re.sub(r"(?<=://)([^/@:]*):[^/]*@", r"\1:PASSWORD@", text)
    return re.sub(r"(?i)([?&][^=&]*(?:password|secret|token|key)[^=&]*=)[^&]*", r"\1SECRET", text)


class _Chat:
    def __init__(self, agent: Agent, options: Sequence[str]) -> None:
        self._agent = agent
        self._options = options
        self._terminal = Terminal()

    async def until_quit(self) -> None:
        await self._greet()
        while (line := await self._terminal.read("> ")) is not None:
            word, _, rest = line.rstrip().partition(" ")
            if word in ("/quit", "/exit"):
                break
            try:
                await self._do(word, rest.strip(), line)
            except KodeError as exc:
                self._line(f"error: {exc}")
        self._terminal.end_line()
        command = shlex.join(["kode", "chat", "--agent", self._agent.id, *self._options])
        sys.stderr.write(f"{visible(command)} goes on\n")  # in one line, to be copied

    async def _do(self, word: str, rest: str, line: str) -> None:
        agent = self._agent
        if word == "/help":
            self._line(_HELP)
        elif word == "/status":
            status = await agent.status()
            self._line(
                f"{agent.id}: {status.state}, {status.message_count} messages, {status.steps} steps, "
                f"{status.usage.input_tokens} + {status.usage.output_tokens} tokens"
            )
        elif word == "/snapshot":
            self._line(f"snapshot {await agent.snapshot(rest or None)}")
        elif word == "/fork":
            self._agent = await agent.fork(snapshot_id=rest or None)
            await self._greet()
        elif word == "/resume" and rest:
            self._agent = await _patiently(
                rest,
                partial(Agent.resume, rest, provider=agent.provider, store=agent.store, template=agent.template),
            )
            await self._greet()
        elif word == "/resume":
            self._line("/resume needs the id of an agent: /resume AGENT")
        elif word == "/go":
            await self._turn(None)
        elif word.startswith("/"):
            self._line(f"no command {word}: /help lists them; begin a message with a space to send it as it is")
        elif line.strip():
            await self._turn(line)

    async def _greet(self) -> None:
        status = await self._agent.status()
        self._line(f"agent {self._agent.id}, {status.message_count} messages; /help lists the commands")
        if status.waits_for_answer:
            self._line("its last message waits for an answer: /go has it answered")

    async def _turn(self, text: str | None) -> None:
        """Send, and show what happens meanwhile."""
        agent = self._agent
        over = asyncio.Event()
        watch = asyncio.create_task(self._watch(over))
        loop = asyncio.get_running_loop()
        interrupts: set[asyncio.Task[None]] = set()
        with suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(
                signal.SIGINT, lambda: interrupts.add(asyncio.create_task(agent.interrupt(note="Ctrl-C")))
            )
        try:
            await _patiently(agent.id, agent.go_on if text is None else partial(agent.send, text.strip()))
        except AgentError as exc:
            if not isinstance(exc, AgentBusyError | NothingToDoError):
                await self._shown(over)
            self._line(f"error: {exc}")
        else:
            await self._shown(over)
        finally:
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop.remove_signal_handler(signal.SIGINT)
            watch.cancel()
            await asyncio.gather(watch, *interrupts, return_exceptions=True)
            self._terminal.end_line()

    async def _shown(self, over: asyncio.Event) -> None:
        """Wait until the events of the turn are shown."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await over.wait()

    async def _watch(self, over: asyncio.Event) -> None:
        questions = _Questions(self._agent, self._terminal)
        try:
            async with aclosing(self._agent.events()) as events:
                async for stored in events:
                    self._show(stored, questions)
                    if stored.event.type == "done" or (
                        stored.event.type == "error" and stored.event.data.get("severity") == "error"
                    ):
                        over.set()
        finally:
            await questions.close()

    def _show(self, stored: StoredEvent, questions: _Questions) -> None:
        kind, data = stored.event.type, stored.event.data
        given = data.get("call")
        call: dict[str, Any] = given if type(given) is dict else {}
        if kind == "text_chunk":
            self._terminal.piece(str(data.get("delta")))
        elif kind == "tool:start":
            self._line(f"[{call.get('name')} {one_line(str(call.get('inputPreview')))}]")
        elif kind == "tool:error":
            error = one_line(str(data.get("error")))
            if call.get("state") == "DENIED":
                self._line(f"[{call.get('name')} {error.removeprefix('the call was ')}]")
            else:
                self._line(f"[{call.get('name')} failed: {error}]")
        elif kind == "permission_required":
            questions.ask(call)
        elif is_decision(stored):
            questions.decided(data)

    def _line(self, text: str) -> None:
        self._terminal.line(text)


class _Questions:
    """The questions of a turn: asked one after the other, and withdrawn when another process decides."""

    def __init__(self, agent: Agent, terminal: Terminal) -> None:
        self._agent = agent
        self._terminal = terminal
        self._open: dict[str, asyncio.Task[None]] = {}
        self._asked = ""
        self._told: set[str] = set()  # decided here
        self._one = asyncio.Lock()

    def ask(self, call: dict[str, Any]) -> None:
        """Ask the user whether a call may run, after the questions before."""
        call_id = str(call.get("id"))
        if call_id not in self._open:
            self._open[call_id] = asyncio.create_task(self._ask(call_id, call))

    def decided(self, data: Mapping[str, Any]) -> None:
        """Withdraw the question of a call that another process has decided."""
        call_id = str(data.get("callId"))
        task = self._open.get(call_id)
        if task is None or task.done() or call_id in self._told:
            return
        task.cancel()
        if self._asked == call_id:
            self._terminal.withdraw()
        word = "allowed" if data["decision"] == "allow" else "denied"
        by, note = data.get("decidedBy"), data.get("note")
        self._terminal.line(f"{word}{f' by {by}' if by else ''}{f': {note}' if note else ''}")

    async def close(self) -> None:
        """Withdraw all questions."""
        for task in self._open.values():
            task.cancel()
        if self._open:
            await asyncio.wait(self._open.values())

    async def _ask(self, call_id: str, call: dict[str, Any]) -> None:
        async with self._one:
            self._asked = call_id
            shown = one_line(str(call.get("inputPreview")))
            said = await self._terminal.read(f"run {call.get('name')} {shown}? [y/N] ")
            allow = (said or "").strip().lower() in ("y", "yes")
            self._told.add(call_id)
            try:
                await self._agent.decide(call_id, "allow" if allow else "deny", by="kode chat")
            except KodeError as exc:
                self._terminal.line(f"error: {exc}")
