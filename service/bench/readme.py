"""`python -m service.bench.readme` writes the README's tables anew from the committed results.

A table stands between `<!-- table:NAME -->` and `<!-- /table -->`. Names:

    rates     manifest.json of the model that compresses, written by `rankpress train`
    kodak     service/eval/results/kodak.json, written by `rankpress eval … --record`
    perceptual service/eval/results/perceptual.json, by `rankpress eval … --perceptual --record`
    latency   service/eval/results/bench.json, written by `rankpress bench … --record`
    stages    the same file
    memory    the same file
    latency-amx service/eval/results/bench-amx.json, by `rankpress bench --record` on a CPU with AMX
    latency-float service/eval/results/bench-float.json, the same on one that computes in float32
    service   bench.json too, when `--service` was given
    swap      service/eval/results/rates.json, written by `rankpress bench --rates --record`
    jobs      service/eval/results/jobs.json, written by `rankpress bench jobs --record`
    decoder   service/eval/results/decoder.json, written by `rankpress bench --decoder … --record`
    agreement service/eval/results/agreement.json, by `rankpress bench DIR --decoder … --record`
    speed     service/eval/results/train.json, by `rankpress bench train --record`
    adaptation service/eval/results/adapted.json, written by `rankpress eval … --adapt … --record`
    adaptation-kodak service/eval/results/adapted-kodak.json, the same of photographs
    ready     service/eval/results/ready.json, by `rankpress eval … --adapt 0 … --record`

A table whose file or part is missing says so. `--check` writes nothing and exits with 1 when the
README does not agree with the results.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from service.bench.report import (
    agreement_table,
    bench_tables,
    decoder_table,
    jobs_table,
    latency_table,
    speed_table,
)
from service.errors import BadParameter
from service.eval.report import (
    adaptation_table,
    eval_table,
    perceptual_table,
    rates_table,
)
from service.eval.tables import Result
from service.store.read import default_model

RESULTS: Final = Path(__file__).parents[1] / "eval" / "results"
README: Final = Path(__file__).parents[2] / "README.md"
STORE: Final = Path(__file__).parents[2] / "model_store"

TABLES: Final[Mapping[str, tuple[str, Callable[[Result], str]]]] = {
    "kodak": ("kodak.json", eval_table),
    "perceptual": ("perceptual.json", perceptual_table),
    "latency-amx": ("bench-amx.json", latency_table),
    "latency-float": ("bench-float.json", latency_table),
    "jobs": ("jobs.json", jobs_table),
    "decoder": ("decoder.json", decoder_table),
    "agreement": ("agreement.json", agreement_table),
    "speed": ("train.json", speed_table),
    "adaptation": ("adapted.json", adaptation_table),
    "adaptation-kodak": ("adapted-kodak.json", adaptation_table),
    "ready": ("ready.json", adaptation_table),
}
"""Tables that are all of what a file holds."""

NAMES: Final = ("rates", "latency", "stages", "memory", "service", "swap", *TABLES)
NOT_MEASURED: Final = "_Not measured yet._"
MARKED: Final = re.compile(r"(<!-- table:([a-z-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def tables(results: Path = RESULTS) -> dict[str, str]:
    """Every table by name, from the JSON files in a folder."""
    found = dict.fromkeys(NAMES, NOT_MEASURED)
    shipped = default_model(STORE)
    manifest = None if shipped is None else _read(STORE / shipped / "manifest.json")
    if manifest is not None:
        found["rates"] = rates_table(manifest)
    for file in ("bench.json", "rates.json"):
        result = _read(results / file)
        if result is not None:
            found |= bench_tables(result)
    for name, (file, table) in TABLES.items():
        result = _read(results / file)
        if result is not None:
            found[name] = table(result)
    return found


def filled(text: str, contents: Mapping[str, str]) -> str:
    """A README with each marked place replaced by the table of its name.

    Raises:
        BadParameter: a marker with a name that there is no table for, or one that never ends.
    """
    begun, whole = text.count("<!-- table:"), len(MARKED.findall(text))
    if begun != whole:
        raise BadParameter(f"{begun} tables begin in the README, {whole} are well marked")

    def replaced(match: re.Match[str]) -> str:
        name = match[2]
        if name not in contents:
            raise BadParameter(f"no table {name!r}; there are {', '.join(contents)}")
        return f"{match[1]}\n{contents[name]}\n\n{match[3]}"

    return MARKED.sub(replaced, text)


def main(arguments: list[str]) -> int:
    """Fill the README, or with --check say whether it agrees; returns the exit code."""
    text = README.read_text()
    wanted = filled(text, tables())
    if text == wanted:
        return 0
    if "--check" in arguments:
        sys.stderr.write("README.md does not agree with the results: run it without --check\n")
        return 1
    README.write_text(wanted)
    return 0


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
