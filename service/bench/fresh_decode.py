"""`python -m service.bench.fresh_decode STREAM STORE THREADS`: one process that only decodes.

It decodes one file repeatedly with the light decoder. Then it prints as JSON the seconds to import
what decoding needs, the time of day after the first decode, the milliseconds of the later decodes,
and its peak memory. It imports nothing else before.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

ROUNDS = 21
BUDGET_S = 5.0


def main(stream: str, store: str, threads: str) -> None:
    """Decode a file and print times and peak memory as JSON."""
    begin = time.perf_counter()
    import service.transforms.entropy_onnx  # loading imports these two later
    import service.transforms.synthesis_onnx  # noqa: F401
    from service.engine.engine import Engine
    from service.runtime.decode_only import load_decode_only
    from service.store.read import load_store

    import_s = time.perf_counter() - begin
    stored = load_store(Path(store) if store else None)
    engine = Engine(load_decode_only(stored, int(threads)), max_pixels=10**9)
    data = Path(stream).read_bytes()
    engine.decompress(data)
    first_at = time.time()
    from service.bench.memory import peak_mib
    from service.bench.timing import time_in_turns

    actions = {"decode": lambda _: engine.decompress(data)}
    latencies, _ = time_in_turns(actions, most=ROUNDS, budget_s=BUDGET_S)
    result = {
        "import_s": import_s,
        "first_at": first_at,
        "decode_ms": latencies["decode"].median,
        "decode_p95_ms": latencies["decode"].p95,
        "peak_mib": peak_mib(),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
