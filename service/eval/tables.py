"""Parts of Markdown tables of results: tables, numbers, and the machine as a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with padded columns, all but the first aligned to the right."""
    widths = [max(2, *(len(str(r[i])) for r in (head, *rows))) for i in range(len(head))]
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    lines = [head, rule, *rows]
    return "\n".join(
        f"| {' | '.join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])} |"
        for line in lines
    )


def machine_words(result: Result) -> str:
    """Return the machine that a result was measured on, as a sentence."""
    machine = result["machine"]
    device = "" if machine["device"] == "cpu" else f", networks on {machine['device']}"
    cores = f"{machine['cores']} cores{device}"
    return f"{machine['cpu']}, {cores}, load {machine['load']:g} at the start."


def ms(value: float | None) -> str:
    """Return milliseconds as a text; a dash for None."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
