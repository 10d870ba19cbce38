"""The laws of bulk runs, tried at their full size, by one command for each part.

    python tests/bulk/laws.py kills local folder      # also: ray, s3
    python tests/bulk/laws.py memory local            # also: ray
    python tests/bulk/laws.py speed
    python tests/bulk/laws.py page service/docs/results/bulk.md

Each part writes what it has seen to a file in the folder `--parts`, from which the page is written.
It needs torch, Ray and moto.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from bulk import costs, kills  # noqa: E402
from bulk.page import page  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=Path, default=Path("bulk-laws"), help="folder of results")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--pairs", type=int, default=3)
    commands = parser.add_subparsers(dest="command", required=True)
    killing = commands.add_parser("kills")
    killing.add_argument("runner", choices=("local", "ray"))
    killing.add_argument("place", choices=("folder", "s3"))
    for name in ("memory", "speed"):
        commands.add_parser(name).add_argument("runner", choices=("local", "ray"))
    commands.add_parser("page").add_argument("path", type=Path)
    options = parser.parse_args()
    parts: Path = options.parts.resolve()
    parts.mkdir(exist_ok=True)
    if options.command == "kills":
        kept = kills.kill_law(options.runner, options.place, parts, options.pictures, options.kills)
    elif options.command == "memory":
        kept = costs.memory_law(options.runner, parts, (10**3, 10**4, 10**5, 10**6))
    elif options.command == "speed":
        folder = parts / "speed"
        if not folder.exists():
            costs.write_pictures(folder, 96)
        kept = costs.speed_law(options.runner, parts, folder, options.pairs, 32)
    else:
        options.path.write_text(page(parts))
        kept = True
    sys.exit(not kept)


if __name__ == "__main__":
    main()
