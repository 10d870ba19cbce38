"""Measured times and memory as Markdown tables, for the terminal and the documentation."""

from __future__ import annotations

from service.eval.report import Result, machine_words, ms, table


def speed_table(result: Result) -> str:
    """The speed of training steps, from the result of `rankpress bench training`."""
    cells = [
        f"{result['pixels_per_s'] / 1e6:.2f} Mpixel/s", f"{ms(result['step_ms'])} ms",
        f"{result['kmac_per_pixel']:.1f}", f"{result['tflops']:.2f}",
        f"{result['peak_tflops']:.2f}", f"{result['copy_gb_s']:.0f}",
    ]  # fmt: skip
    head = [f"{result['size']}, {result['batch']} crops of {result['crop']}", "pixels", "a step",
            "kMAC/pixel", "TFLOP/s", "of one large product", "a copy, GB/s"]  # fmt: skip
    return table(head, [["training", *cells]]) + f"\n\n{machine_words(result)}"


def bench_tables(result: Result) -> dict[str, str]:
    """The tables of the parts that a result of `bench codec` has, by their names."""
    writers = {
        "latency": latency_table,
        "stages": stages_table,
        "memory": memory_table,
        "service": service_table,
    }
    return {name: write_table(result) for name, write_table in writers.items() if name in result}


def latency_table(result: Result) -> str:
    """Median (and 95th percentile) milliseconds by size, for our codec and its peers."""
    columns = {
        "compress": "compress_ms",
        "without check": "compress_unchecked_ms",
        "decompress": "decompress_ms",
        "AVIF encode": "avif_encode_ms",
        "AVIF decode": "avif_decode_ms",
        "WebP encode": "webp_encode_ms",
        "WebP decode": "webp_decode_ms",
    }
    rows = [
        [_size(e), *(f"{ms(e[c]['median'])} ({ms(e[c]['p95'])})" for c in columns.values())]
        for e in result["latency"]
    ]
    return table(["ms, median (p95)", *columns], rows) + f"\n\n{_conditions(result)}"


def stages_table(result: Result) -> str:
    """Median milliseconds by stage and size of picture."""
    rows: list[list[str]] = []
    for way in ("compress_ms", "decompress_ms"):
        names = dict.fromkeys(n for e in result["stages"] for n in e[way])
        for name in sorted(names, key=lambda n: -result["stages"][0][way].get(n, 0)):
            cells = [ms(e[way].get(name, 0.0)) for e in result["stages"]]
            rows.append([f"{way.removesuffix('_ms')}: {name}", *cells])
    return table(["ms, median", *(_size(e) for e in result["stages"])], rows)


def swap_table(result: Result) -> str:
    """The cost of a change of rate, and a server's throughput for each rate and for all mixed."""
    swap, service = result["swap_ms"], result["service"]
    rows = [
        [f"compress, rate {name}", f"{value:.2f}/s"]
        for name, value in service["alone_per_second"].items()
    ]
    rows += [
        ["each rate alone, as often as the others", f"{service['each_alone_per_second']:.2f}/s"],
        ["all of them mixed", f"{service['mixed_per_second']:.2f}/s"],
        ["mixed, of each alone", f"{service['mixed_share']:.1%}"],
    ]
    if swap:
        rows += [
            ["weights of a rate that is cached, made live", f"{swap['cached']:.3f} ms"],
            ["weights of a rate merged from the base", f"{ms(swap['merged'])} ms"],
            ["a whole model read, checked and made resident", f"{ms(swap['loaded'])} ms"],
        ]
    return table([f"{_size(result)}, {result['clients']} clients", "measured"], rows) + (
        f"\n\n{machine_words(result)}"
    )


def memory_table(result: Result) -> str:
    """Peak MiB of a process by size of picture."""
    columns = {
        "models loaded": "loaded_mib",
        "compress": "compress_mib",
        "decompress": "decompress_mib",
        "decompress to PNG": "decompress_to_png_mib",
    }
    rows = [[_size(e), *(f"{e[c]:,.0f}" for c in columns.values())] for e in result["memory"]]
    return table(["peak MiB of the process", *columns], rows)


def service_table(result: Result) -> str:
    """Requests per second and latencies by number of clients, and at twice the capacity."""
    rows = []
    for way in ("compress", "decompress"):
        entry = result["service"][way]
        for load in (*entry["closed_loop"], entry["overload"]):
            if clients := load.get("clients"):
                label = f"{clients} client{'s' * (clients > 1)}"
            else:
                label = f"{load['offered_per_second']:.1f}/s offered (2x capacity)"
            rows.append([f"{way}, {label}", f"{load['per_second']:.1f}", ms(load["median_ms"]),
                         ms(load["p95_ms"]), str(load["answered_503"]),
                         str(load["answered_otherwise"])])  # fmt: skip
    head = ["over loopback", "200/s", "median ms", "p95 ms", "503s", "other failures"]
    return table(head, rows)


def jobs_table(result: Result) -> str:
    """Latency of compress without and during a job, and the steps that the job makes meanwhile."""
    ways = {"no job": result["without"], "beside a job": result["beside"]}
    rows = [
        [name, f"{way['per_second']:.2f}", ms(way["median_ms"]), ms(way["p95_ms"])]
        for name, way in ways.items()
    ]
    speed = f"{result['job_steps_per_second']:.1f} steps a second"
    return table(["compress, 1 client", "200/s", "median ms", "p95 ms"], rows) + (
        f"\n\nThe job, of effort {result['effort']}, makes {speed} meanwhile. "
        f"{_size(result)}, rate {result['rate']:g}, {machine_words(result)}"
    )


def decoder_table(result: Result) -> str:
    """Start, times, memory and installed size of the light decoder."""
    rows = [
        [_size(e), f"{e['import_s']:.2f}", f"{e['first_s']:.2f}", ms(e["decode_ms"]),
         ms(e["decode_p95_ms"]), f"{e['peak_mib']:,.0f}"]
        for e in result["times"]
    ]  # fmt: skip
    head = ["light decoder", "import s", "first picture after s", "then ms", "p95 ms", "peak MiB"]
    sizes = result["installed_mb"]
    largest = sorted(sizes, key=lambda n: -sizes[n])[:4]
    parts = ", ".join(f"{n} {sizes[n]:.0f}" for n in largest)
    return table(head, rows) + (
        f"\n\n{_conditions(result)} Installed: {sum(sizes.values()):.0f} MB ({parts})."
    )


def agreement_table(result: Result) -> str:
    """Differences from torch in float32: of the light decoder, and of torch as a server runs it."""
    rows = [
        [f"{a['rate']:g}" + f" ({a['tune']})" * (a["tune"] != "psnr"), str(a["largest"]),
         f"{a['share']:.4%}", str(a["server_largest"]), f"{a['server_share']:.1%}"]
        for a in result["agreement"]
    ]  # fmt: skip
    columns = ["rate", "light: largest difference", "samples that differ",
               "torch as served: largest", "samples that differ"]  # fmt: skip
    return table(columns, rows)


def _conditions(result: Result) -> str:
    return f"Rate {result['rate']:g}, {result['pictures']} pictures, {machine_words(result)}"


def _size(entry: Result) -> str:
    return f"{entry['width']}×{entry['height']}"
