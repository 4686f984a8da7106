"""``kode completion``: completion of commands, options and ids of agents in a shell."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

import typer

from kode_core.cli.opening import default_store, default_tenant, open_store
from kode_core.cli.output import visible, write_text
from kode_core.errors import InvalidArgumentError

__all__ = ["EXAMPLES", "complete_agent", "completion", "prepare_completion"]

EXAMPLES: Final = (
    'eval "$(kode completion bash)"',
    "kode completion zsh > ~/.zfunc/_kode",
    "kode completion fish > ~/.config/fish/completions/kode.fish",
)

_SHELLS: Final = ("bash", "zsh", "fish")
_MOST: Final = 50
_LOOKED_AT: Final = 500
_SECONDS: Final = 2.0


def completion(shell: Annotated[str, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")]) -> None:
    """Print the script that completes kode in SHELL, to be read by the shell or kept as a file.

    Ids of agents are completed, too: the newest ones of the store that the command line names so far; and, after
    --store, the names of kode.toml.
    """
    if shell not in _SHELLS:
        raise InvalidArgumentError(f"SHELL must be one of {', '.join(_SHELLS)}, got {shell!r:.40}")
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    write_text(get_completion_script(prog_name="kode", complete_var="_KODE_COMPLETE", shell=shell) + "\n")


def prepare_completion() -> None:
    """Let a shell's request for completions be answered, which typer does for the shells that it knows."""
    from typer.completion import completion_init  # type: ignore[attr-defined]

    completion_init()


def complete_agent(ctx: typer.Context, incomplete: str) -> list[str]:
    """The newest agents whose ids begin so; nothing if the store cannot be opened, or does not answer in time.

    Ids that a terminal or a shell would interpret are left out.
    """
    try:
        target = ctx.params.get("store")
        if target is None and ctx.parent is not None:
            target = ctx.parent.params.get("store")
        default_store.set(None)
        default_tenant.set(None if ctx.parent is None else ctx.parent.params.get("tenant"))
        return asyncio.run(asyncio.wait_for(_ids(target, incomplete), _SECONDS))
    except (Exception, SystemExit):  # noqa: BLE001 - a shell has no use for errors between two keys
        return []


async def _ids(target: str | None, begin: str) -> list[str]:
    async with open_store(target) as store:
        found: list[str] = []
        page: Any = await store.query_sessions(sort_by="updated_at", limit=_LOOKED_AT)
        for session in page:
            agent_id = session.agent_id
            if agent_id.startswith(begin) and visible(agent_id) == agent_id and not agent_id.startswith("-"):
                found.append(agent_id)
        return found[:_MOST]
