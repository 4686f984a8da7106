"""The terminal of ``kode chat``: pieces of answers, lines, and prompts that can be withdrawn."""

from __future__ import annotations

import asyncio
import sys
import threading
from contextlib import suppress

from kode_core.cli.output import visible

__all__ = ["Terminal"]


class Terminal:
    """Standard input and output, which may also be pipes: prompts are shown to people only."""

    def __init__(self) -> None:
        self._in_line = False  # whether the cursor stands behind something
        self._prompt = ""  # the one that is shown
        self._reading: asyncio.Future[str] | None = None  # the line that comes next; outlives a withdrawn prompt

    def piece(self, text: str) -> None:
        """Show a piece of an answer."""
        self._write(visible(text, lines=True))
        self._in_line = not text.endswith("\n")

    def line(self, text: str) -> None:
        """Show a line of its own; a prompt is shown again behind it."""
        self.end_line()
        self._write(f"{visible(text, lines=True)}\n")
        if self._prompt:
            self._show_prompt()

    def end_line(self) -> None:
        """Go to the beginning of a line."""
        if self._in_line:
            self._write("\n")
            self._in_line = False

    def withdraw(self) -> None:
        """Show the prompt no more; the one that reads is cancelled by the caller."""
        self._prompt = ""

    async def read(self, prompt: str) -> str | None:
        """The next line of stdin; None at its end. A cancelled read withdraws the prompt."""
        is_person = sys.stdin.isatty()
        if is_person:
            self.end_line()
            self._prompt = visible(prompt)
            self._show_prompt()
            if self._reading is not None and self._reading.done() and self._reading.result():
                self._reading = None  # typed for the prompt that was withdrawn
        if self._reading is None:
            self._reading = self._begin()
        try:
            text = await asyncio.shield(self._reading)
        except asyncio.CancelledError:
            if is_person:
                _forget_typed()
            raise
        finally:
            self._prompt = ""
        self._reading = None
        self._in_line = self._in_line and not text
        return text or None

    def _begin(self) -> asyncio.Future[str]:
        loop = asyncio.get_running_loop()
        line: asyncio.Future[str] = loop.create_future()

        def tell(text: str) -> None:
            if not line.done():
                line.set_result(text)

        def read() -> None:
            try:
                text = sys.stdin.readline()
            except (OSError, ValueError):
                text = ""
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(tell, text)

        threading.Thread(target=read, name="stdin", daemon=True).start()
        return line

    def _show_prompt(self) -> None:
        self._write(self._prompt)
        self._in_line = True

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def _forget_typed() -> None:
    """Forget what was typed for a prompt that is withdrawn, so that it does not answer the next one."""
    with suppress(ImportError, OSError, ValueError):
        import termios

        termios.tcflush(sys.stdin, termios.TCIFLUSH)
