"""What every table of results is made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, columns padded so that it reads as text too; numbers to the right."""
    widths = [max(2, *(len(str(r[i])) for r in (head, *rows))) for i in range(len(head))]
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    lines = [head, rule, *rows]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) if i == 0 else c.rjust(w)
                          for i, (c, w) in enumerate(zip(line, widths, strict=True))) + " |"
        for line in lines
    )  # fmt: skip


def machine_words(result: Result) -> str:
    """What a result was measured on, as a sentence."""
    machine = result["machine"]
    device = "" if machine["device"] == "cpu" else f", networks on {machine['device']}"
    cores = f"{machine['cores']} cores{device}"
    return f"{machine['cpu']}, {cores}, load {machine['load']:g} at the start."


def ms(value: float | None) -> str:
    """Milliseconds, a dash for None."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
