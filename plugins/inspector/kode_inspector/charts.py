"""Charts as SVG, drawn here: no script runs, and each has a title, labels and the values as text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count as numbers
from math import ceil, log10
from typing import Final

from markupsafe import Markup

from kode_inspector.text import finalize, short

__all__ = ["bars", "columns"]

_ids = numbers(1)
_WIDTH: Final = 480
_HEIGHT: Final = 150
_ROW: Final = 36
_LEFT: Final = 44
_BOTTOM: Final = 24
_TOP: Final = 10
_BAD: Final = Markup(' bad" fill="url(#hatch)"')
_PLAIN: Final = Markup('"')


def columns(title: str, points: Sequence[tuple[str, int, int]], *, whole: str, part: str) -> Markup:
    """Columns by day: ``(label, number, a part of it)``; the part, such as failures, is hatched."""
    most = _round_up(max((value for _, value, _ in points), default=0))
    width = (_WIDTH - _LEFT) / max(1, len(points))
    shapes: list[Markup] = []
    for tick in (0, most / 2, most):
        y = _y(tick, most)
        shapes.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(_LEFT, _WIDTH, y, y)
        )
        if tick == int(tick):
            shapes.append(
                Markup('<text class="tick" x="{}" y="{:.1f}">{:,}</text>').format(_LEFT - 6, y + 4, int(tick))
            )
    every = max(1, ceil(len(points) / 6))
    for i, (label, value, some) in enumerate(points):
        x, broad = _LEFT + i * width, min(max(1.0, width * 0.76), 44.0)
        x += (width - broad) / 2
        y = _y(value, most)
        told = f"{label}: {value:,} {whole}" + (f", {some:,} {part}" if part else "")
        shapes.append(
            Markup(
                '<g><title>{}</title><rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>'
            ).format(told, x, y, broad, _HEIGHT - _BOTTOM - y)
        )
        if some:
            y = _y(some, most)
            shapes.append(
                Markup(
                    '<rect class="bar bad" fill="url(#hatch)" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>'
                ).format(x, y, broad, _HEIGHT - _BOTTOM - y)
            )
        shapes.append(Markup("</g>"))
        if i % every == 0:
            middle = min(max(x + broad / 2, _LEFT + 30), _WIDTH - 32)
            shapes.append(Markup('<text class="label" x="{:.1f}" y="{}">{}</text>').format(middle, _HEIGHT - 7, label))
    return _svg(title, shapes, _HEIGHT)


def bars(title: str, rows: Sequence[tuple[str, float, str]], *, bad: bool = False) -> Markup:
    """Rows of ``(label, value, the value as text)``."""
    most = max((value for _, value, _ in rows), default=0.0) or 1.0
    shapes: list[Markup] = []
    for i, (label, value, told) in enumerate(rows):
        y = i * _ROW
        length = max(1.0, value / most * _WIDTH) if value else 0.0
        shapes.append(
            Markup(
                '<g><title>{0}: {1}</title><text class="name" x="0" y="{2}">{3}</text>'
                '<text class="value" x="{7}" y="{2}">{1}</text>'
                '<rect class="track" x="0" y="{4}" width="{7}" height="8" rx="2"/>'
                '<rect class="bar{5} x="0" y="{4}" width="{6:.1f}" height="8" rx="2"/></g>'
            ).format(
                finalize(short(label, 200)),
                told,
                y + 14,
                finalize(short(label, 36)),
                y + 19,
                _BAD if bad else _PLAIN,
                length,
                _WIDTH,
            )
        )
    return _svg(title, shapes, max(_ROW, len(rows) * _ROW))


def _svg(title: str, shapes: Sequence[Markup], height: int) -> Markup:
    name = f"chart-{next(_ids)}"
    return Markup(
        '<svg class="chart" viewBox="0 0 {0} {1}" role="img" aria-labelledby="{2}"><title id="{2}">{3}</title>{4}</svg>'
    ).format(_WIDTH, height, name, title, Markup("").join(shapes))


def _y(value: float, most: int) -> float:
    return _TOP + (_HEIGHT - _BOTTOM - _TOP) * (1 - value / most)


def _round_up(value: int) -> int:
    if value <= 4:
        return 4
    step = 10 ** int(log10(value))
    found: int = next(step * factor for factor in (1, 2, 4, 5, 6, 8, 10) if step * factor >= value)
    return found
