"""A badge of a report: a small SVG, made here, that no server has to draw."""

from __future__ import annotations

from typing import Final
from xml.sax.saxutils import escape, quoteattr

from kode_conformance.reports.tally import level_of, tally
from kode_conformance.results import Report, Status, Verdict
from kode_core.cli.output import visible

__all__ = ["message_of", "svg"]

_LABEL: Final = "conformance"
_GREEN, _AMBER, _RED, _GREY = "#2e7d32", "#9a6700", "#c62828", "#5f6368"
_COLOURS: Final = {
    Verdict.CONFORMANT: _GREEN,
    Verdict.WITH_DEVIATIONS: _AMBER,
    Verdict.NOT_CONFORMANT: _RED,
    Verdict.PART_PASSED: _GREY,
    Verdict.INCOMPLETE: _GREY,
}
_PADDING: Final = 6
_NARROW: Final = frozenset("iljtfrI.,:;'|!()[] /")
_WIDE: Final = frozenset("mwMW%@")

_SVG: Final = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" viewBox="0 0 {width} 20" role="img" \
aria-label={title_attribute}>
<title>{title}</title>
<clipPath id="r"><rect width="{width}" height="20" rx="3"/></clipPath>
<g clip-path="url(#r)">
<rect width="{split}" height="20" fill="#3c4043"/>
<rect x="{split}" width="{rest}" height="20" fill="{colour}"/>
</g>
<g fill="#fff" font-family="Verdana,'DejaVu Sans',Geneva,sans-serif" font-size="11">
<text x="{label_x}" y="14" textLength="{label_width}">{label}</text>
<text x="{message_x}" y="14" textLength="{message_width}">{message}</text>
</g>
</svg>
"""


def message_of(report: Report) -> str:
    """The text of the badge: ``1.0 extended, 230/230 under 480 conditions``; a run that says too little is named so."""
    numbers = tally(report.results)
    passed = f"{numbers.passed}/{numbers.eligible}"
    if report.verdict is Verdict.INCOMPLETE:
        return f"incomplete, {passed}"
    if report.partial:
        return f"a part, {passed}"
    conditions = f" under {report.conditions:,} conditions" if report.conditions else ""
    known = f"{report.contract} {level_of(report)}, {passed}{conditions}"
    deviations = numbers.counts[Status.DEVIATION]
    if deviations:
        known += f", {deviations} deviation{'' if deviations == 1 else 's'}"
    return f"{known}, quick" if report.tier == "quick" else known


def svg(report: Report) -> str:
    """The badge. Green: conformant; amber: with deviations; red: not conformant; grey: too little was run to say."""
    message = visible(message_of(report))
    colour = _COLOURS[report.verdict]
    if colour == _GREEN and report.tier == "quick":
        colour = _GREY
    label_width, message_width = _width(_LABEL), _width(message)
    split, rest = label_width + 2 * _PADDING, message_width + 2 * _PADDING
    title = f"{_LABEL}: {message} ({visible(report.store)}: {report.verdict.value.lower()})"
    return _SVG.format(
        width=split + rest,
        title=escape(title),
        title_attribute=quoteattr(title),
        split=split,
        rest=rest,
        colour=colour,
        label=_LABEL,
        label_x=_PADDING,
        label_width=label_width,
        message=escape(message),
        message_x=split + _PADDING,
        message_width=message_width,
    )


def _width(text: str) -> int:
    """About how many pixels *text* is wide in Verdana at 11 px; the text is then fitted to just that."""
    return round(
        sum(3.9 if char in _NARROW else 10 if char in _WIDE else 7.1 if char.isdigit() else 6.6 for char in text)
    )
