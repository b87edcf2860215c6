"""A report's value as HTML, as Markdown and as JSON. The HTML is one file that loads nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .report import BAD, PHASES, STATES

__all__ = ["to_html", "to_json", "to_markdown"]

_TEMPLATES = Path(__file__).with_name("templates")
#: What stands before a state's word: no meaning rests on colour alone.
SIGNS: Mapping[str, str] = dict.fromkeys(BAD, "✗") | {"planned": "→", "done": "✓", "unchanged": "="}
_ROW, _BAR, _LEFT, _WIDTH = 22, 14, 150, 860


def to_json(report: Mapping[str, Any]) -> str:
    """:returns: ``report.json``."""
    return json.dumps(report, indent=1, ensure_ascii=False) + "\n"


def to_html(report: Mapping[str, Any]) -> str:
    """:returns: ``report.html``."""
    return _render("report.html.j2", report)


def to_markdown(report: Mapping[str, Any]) -> str:
    """:returns: ``report.md``, for a ticket."""
    return _render("report.md.j2", report)


def _render(name: str, report: Mapping[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=select_autoescape(("html.j2",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(short=_short, seconds=_seconds, size=_size, cell=_cell, code=_code, word=STATES.get)
    environment.filters.update(estimate=_estimate, longest=_longest)
    return environment.get_template(name).render(
        r=report, signs=SIGNS, bad=BAD, chart=_chart(report), title=_title(report), phases=[name for name, _ in PHASES]
    )


def _title(report: Mapping[str, Any]) -> str:
    what = "Plan" if report["kind"] == "plan" else "Run"
    projects = ", ".join(report["projects"]) or "offline-rebuild"
    return f"{what} {report['id']}: {projects}"


def _short(image: str) -> str:
    return image.rsplit(":", maxsplit=1)[-1][:12] if image else "none"


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 100 else f"{value:.1f} s"


def _estimate(estimate: Mapping[str, Any] | None) -> str:
    """:returns: a host's estimate: median, and least to most."""
    if estimate is None:
        return "–"
    span = estimate["all"]
    if span is None:
        return "no history yet"
    return f"{_seconds(span['seconds'])} ({_seconds(span['least'])} to {_seconds(span['most'])})"


def _longest(hosts: Sequence[Mapping[str, Any]]) -> str:
    """:returns: the estimate of the host that takes longest, and how many have none; nothing where none was made."""
    made = [host["estimate"] for host in hosts if host["estimate"] is not None]
    known = [one for one in made if one["all"] is not None]
    parts = [_estimate(max(known, key=lambda one: one["all"]["seconds"])) + " on the slowest host"] if known else []
    if len(known) < len(made):
        parts.append(f"no history yet on {len(made) - len(known)} of {len(hosts)} hosts")
    return "; ".join(parts)


def _size(value: int) -> str:
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.1f} {unit}"
    return f"{value} B"


def _cell(text: Any) -> str:
    """:returns: text for a cell of a Markdown table: one line, nothing in it is markup."""
    plain = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for char in "\\`*_[]|#":
        plain = plain.replace(char, "\\" + char)
    return plain


def _code(text: Any) -> str:
    """:returns: a Markdown code block; its fence is longer than any in the text."""
    body = str(text)
    fence = "```"
    while fence in body:
        fence += "`"
    return f"{fence}text\n{body}\n{fence}"


def _chart(report: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of the timeline picture: one row for each host that did something, all on one time axis."""
    rows = [host for host in report["hosts"] if host["phases"]]
    end = max((phase["start"] + phase["seconds"] for host in rows for phase in host["phases"]), default=0.0)
    end = max([end, *(host["start"] + host["seconds"] for host in rows)], default=0.0)
    if not rows or end <= 0:
        return {"rows": []}
    scale = (_WIDTH - _LEFT - 60) / end
    made = [
        {
            "host": host["host"] if len(host["host"]) <= 20 else host["host"][:19] + "…",
            "y": place * _ROW,
            "bars": [
                {
                    "name": phase["name"],
                    "x": round(_LEFT + phase["start"] * scale, 1),
                    "width": round(max(1.0, phase["seconds"] * scale), 1),
                    "seconds": phase["seconds"],
                }
                for phase in host["phases"]
            ],
            "end": round(_LEFT + (host["phases"][-1]["start"] + host["phases"][-1]["seconds"]) * scale + 4, 1),
            "sum": sum(phase["seconds"] for phase in host["phases"]),
        }
        for place, host in enumerate(rows)
    ]
    return {"rows": made, "height": len(rows) * _ROW + 24, "width": _WIDTH, "bar": _BAR, "end": end, "left": _LEFT}
