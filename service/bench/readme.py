"""`python -m service.bench.readme` fills the tables of README.md and of the pages in service/docs.

A table stands between `<!-- table:NAME -->` and `<!-- /table -->`. The pages name the command that
records the results of each table. A table whose file or part is missing says so. `--check` writes
nothing and exits with 1 when a page does not agree with the results.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic.fields import FieldInfo

from service.bench.report import (
    agreement_table,
    bench_tables,
    decoder_table,
    graphics_table,
    jobs_table,
    service_table,
    speed_table,
    swap_table,
)
from service.bench.site import DOCS
from service.errors import BadParameter
from service.eval.report import (
    Result,
    adaptation_table,
    eval_table,
    ladder_table,
    latent_costs,
    latent_tables,
    parts_table,
    perceptual_table,
    rates_table,
    ways_table,
)
from service.settings import Settings
from service.store.read import default_model

ROOT: Final = Path(__file__).parents[2]
README: Final = ROOT / "README.md"
RESULTS: Final = ROOT / "service" / "eval" / "results"
STORE: Final = ROOT / "model_store"

TABLES: Final[Mapping[str, tuple[str, Callable[[Result], str]]]] = {
    "ladder": ("kodak.json", ladder_table),
    "kodak": ("kodak.json", eval_table),
    "perceptual": ("perceptual.json", perceptual_table),
    "service": ("service.json", service_table),
    "swap": ("rates.json", swap_table),
    "jobs": ("jobs.json", jobs_table),
    "decoder": ("decoder.json", decoder_table),
    "agreement": ("agreement.json", agreement_table),
    "parts": ("parts.json", parts_table),
    "graphics": ("graphics.json", graphics_table),
    "speed": ("train.json", speed_table),
    "adaptation": ("adapted.json", adaptation_table),
    "adaptation-kodak": ("adapted-kodak.json", adaptation_table),
    "ready": ("ready.json", adaptation_table),
    "variable-rate": ("variable-rate.json", ways_table),
    "latent": ("latent.json", latent_tables),
    "latent-efforts": ("latent-efforts.json", latent_costs),
}
"""The file and the writer of each table that shows one whole file of results."""

NAMES: Final = ("rates", "rates-swin", "latency", "stages", "memory", "settings", *TABLES)
NOT_MEASURED: Final = "_Not measured yet._"
MARKED: Final = re.compile(r"(<!-- table:([a-z-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def pages() -> tuple[Path, ...]:
    """README.md and every page of the documentation."""
    return (README, *sorted(DOCS.glob("*.md")))


def tables(results: Path = RESULTS) -> dict[str, str]:
    """Return every table by name, made from the JSON files in a folder."""
    texts = dict.fromkeys(NAMES, NOT_MEASURED) | {"settings": settings_table()}
    shipped = default_model(STORE)
    manifest = None if shipped is None else _read(STORE / shipped / "manifest.json")
    if manifest is not None:
        texts["rates"] = rates_table(manifest)
    swin = _read(STORE / "swin" / "manifest.json")
    if swin is not None:
        texts["rates-swin"] = rates_table(swin)
    texts |= bench_tables(_read(results / "bench.json") or {})
    for name, (file, write_table) in TABLES.items():
        result = _read(results / file)
        if result is not None:
            texts[name] = write_table(result)
    return texts


def settings_table() -> str:
    """Every environment variable with its default and what it sets."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        lines.append(f"| `RANKPRESS_{name.upper()}` | {_default(field)} | {meaning} |")
    return "\n".join(lines)


def _default(field: FieldInfo) -> str:
    """The default as one would write it into the environment; nothing for none."""
    value = str(field.default).lower() if isinstance(field.default, bool) else field.default
    return "" if value in (None, "") else f"`{value}`"


def fill(text: str, contents: Mapping[str, str]) -> str:
    """Return a page with each marked place replaced by the table of its name.

    Raises:
        BadParameter: a marker has a name that there is no table for, or never ends.
    """
    begun, whole = text.count("<!-- table:"), len(MARKED.findall(text))
    if begun != whole:
        raise BadParameter(f"{begun} tables begin in the page, but {whole} are marked correctly")

    def replace(match: re.Match[str]) -> str:
        name = match[2]
        if name not in contents:
            raise BadParameter(f"no table is called {name!r}; there are {', '.join(contents)}")
        return f"{match[1]}\n{contents[name]}\n\n{match[3]}"

    return MARKED.sub(replace, text)


def main(arguments: list[str]) -> int:
    """Fill every page, or with --check only compare; returns the exit code."""
    contents = tables()
    outdated = {
        page: filled
        for page in pages()
        if (filled := fill(text := page.read_text(), contents)) != text
    }
    if "--check" in arguments:
        for page in outdated:
            name = page.relative_to(ROOT)
            sys.stderr.write(f"{name} does not agree with the results: run without --check\n")
        return 1 if outdated else 0
    for page, filled in outdated.items():
        page.write_text(filled)
    return 0


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
