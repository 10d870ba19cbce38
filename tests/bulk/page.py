"""The page of what tests/bulk/laws.py has seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bulk.costs import SIMULATED_SHARD_ROWS
from bulk.kills import SHARD_ROWS, WORKERS


def page(parts: Path) -> str:
    """The page of all parts that there are."""
    return "\n".join([*kills_lines(parts), *memory_lines(parts), *speed_lines(parts)]) + "\n"


def results(parts: Path, kind: str) -> list[dict[str, Any]]:
    """What the parts of a kind have seen."""
    return [json.loads(path.read_text()) for path in sorted(parts.glob(f"{kind}-*.json"))]


def kills_lines(parts: Path) -> list[str]:
    seen = results(parts, "kills")
    lines = [
        "# Bulk runs",
        "",
        "## Killed runs",
        "",
        "`python tests/bulk/laws.py kills RUNNER PLACE`: the process group of a run is killed "
        f"(SIGKILL) at random points and the run started again, with {WORKERS} workers and shards "
        f"of {SHARD_ROWS} rows. Then all objects, the manifest and all reports but their seconds "
        "are compared with those of an uninterrupted run of the local runner from folder to "
        "folder. S3 is moto's server, for source and destination.",
        "",
        "| runner | places | pictures, poisoned | kills | shards | done twice, all kills | "
        "most at one kill | finished ones done again | last process gone, s | same |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for one in seen:
        same = "yes" if not one["differing"] else ", ".join(one["differing"])
        lines.append(
            f"| {one['runner']} | {one['place']} | {one['objects']}, {len(one['failures'])} | "
            f"{one['kills']} | {one['shards']} | {sum(one['open'])} | {max(one['open'])} | "
            f"{len(one['faults'])} | {max(one['gone_s']):.1f} | {same} |"
        )
    lines += [
        "",
        "The shards done twice are those that were begun and not finished when the run was "
        "killed. The poisoned files end as rows:",
        "",
        "| file | error |",
        "|---|---|",
        *(f"| `{source}` | {error} |" for source, error in seen[0]["failures"].items()),
    ]
    return lines


def memory_lines(parts: Path) -> list[str]:
    lines = [
        "",
        "## Memory of the coordinator",
        "",
        "`python tests/bulk/laws.py memory RUNNER`: peak of the process that lists the source, "
        "writes the manifest and schedules shards. The listing and the work are simulated, in "
        f"shards of {SIMULATED_SHARD_ROWS['local']} rows for local and "
        f"{SIMULATED_SHARD_ROWS['ray']} for Ray, of which one fails; the manifest in a folder, the "
        "runner and two worker processes are real.",
        "",
        "| rows | runner | peak, MB | seconds |",
        "|---:|---|---:|---:|",
    ]
    for one in results(parts, "memory"):
        for size in one["of"]:
            rows, runner = f"{size['rows']:,}", one["runner"]
            lines.append(f"| {rows} | {runner} | {size['peak_mb']} | {size['seconds']} |")
    return lines


def speed_lines(parts: Path) -> list[str]:
    lines = [
        "",
        "## Throughput",
        "",
        "`python tests/bulk/laws.py speed RUNNER`: pairs in turn of the engine alone, in a loop "
        "that reads, decodes and compresses at rate 4, and of a run with one worker. Both have "
        "one thread for the networks and the shipped model, on PNG files in a folder. A run is "
        "timed from the end of its first shard of 32 rows to that of its last, or by the seconds "
        "that its worker has had these shards, where that is longer.",
        "",
        "| runner | pictures | alone, per s | run, per s | share | before, s | after, s |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for one in results(parts, "speed"):
        height, width = one["size"]
        for pair in one["pairs"]:
            alone, bulk = pair["alone"]["pictures_per_s"], pair["bulk"]
            speed = bulk["pictures_per_s"]
            lines.append(
                f"| {one['runner']} | {one['pictures']} of {width}×{height} | {alone:.2f} | "
                f"{speed:.2f} | {100 * speed / alone:.1f} % | {bulk['before_s']:.1f} | "
                f"{bulk['after_s']:.1f} |"
            )
    shares = (f"{100 * one['share']:.1f} % for {one['runner']}" for one in results(parts, "speed"))
    return [*lines, "", f"The median share is {' and '.join(shares)}."]
