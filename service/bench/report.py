"""Measured times and memory as Markdown tables, for the terminal and the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from service.bench.graphics import LayerMeasurement, StreamMeasurement, read_measurements
from service.eval.pictures import group_of
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
        "without PSNR": "compress_unmeasured_ms",
        "without check": "compress_unchecked_ms",
        "decompress": "decompress_ms",
        "decompress at 1/8": "decompress_eighth_ms",
        "AVIF encode": "avif_encode_ms",
        "AVIF decode": "avif_decode_ms",
        "WebP encode": "webp_encode_ms",
        "WebP decode": "webp_decode_ms",
    }
    measured = {name: key for name, key in columns.items() if key in result["latency"][0]}
    rows = [
        [_size(e), *(f"{ms(e[c]['median'])} ({ms(e[c]['p95'])})" for c in measured.values())]
        for e in result["latency"]
    ]
    return table(["ms, median (p95)", *measured], rows) + f"\n\n{_conditions(result)}"


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


def graphics_table(result: Result) -> str:
    """Pictures with and without the graphics layer, by group and rate; then the largest excesses.

    The excesses are of R + lmbda·D over that without the layer, and of bytes over lossless WebP
    where that is smaller than the stream without the layer.
    """
    measurements = read_measurements(result)
    rows = []
    for group in dict.fromkeys(group_of(m.image) for m in measurements):
        of_group = [m for m in measurements if group_of(m.image) == group]
        for rate in sorted({m.rate for m in of_group}):
            rows.append(_graphics_row(group, rate, [m for m in of_group if m.rate == rate]))
    head = ["group, pictures", "rate", "mean bytes", "PSNR dB", "R + lmbda·D"]
    head += ["AVIF's bytes / ours", "lossless WebP's / ours", "blocks", "time"]
    smaller = [m for m in measurements if m.webp_bytes < m.plain.bytes]
    above_webp = max((m.layered.bytes - m.webp_bytes for m in smaller), default=0)
    return table(head, rows) + (
        f"\n\nLargest change of R + lmbda·D: {max(m.loss_percent for m in measurements):+.2f} %. "
        f"Largest excess over lossless WebP where that is smaller than the plain stream: "
        f"{above_webp:+,} bytes. {machine_words(result)}"
    )


def _graphics_row(group: str, rate: float, measured: Sequence[LayerMeasurement]) -> list[str]:
    """The cells of pictures of one group at one rate, without the layer → with it."""
    ways = [[m.plain for m in measured], [m.layered for m in measured]]
    mean_bytes, psnr, avif = (
        " → ".join(cell(streams) for streams in ways)
        for cell in (_mean_bytes, _mean_psnr, _avif_ratio)
    )
    plain_s, layered_s = (sum(s.seconds for s in streams) for streams in ways)
    return [
        f"{group}, {len(measured)}",
        f"{rate:g}",
        mean_bytes,
        psnr,
        f"{fmean(m.loss_percent for m in measured):+.1f} %",
        avif,
        f"{fmean(m.webp_bytes / m.layered.bytes for m in measured):.2f}",
        f"{fmean(m.share for m in measured):.0%}",
        f"×{layered_s / plain_s:.2f}",
    ]


def _mean_bytes(streams: Sequence[StreamMeasurement]) -> str:
    return f"{fmean(s.bytes for s in streams):,.0f}"


def _mean_psnr(streams: Sequence[StreamMeasurement]) -> str:
    """The mean PSNR of the pictures that are not exact, and how many are."""
    finite = [s.psnr_db for s in streams if s.psnr_db is not None]
    if not finite:
        return "exact"
    exact = len(streams) - len(finite)
    return f"{fmean(finite):.1f}" + f" ({exact} exact)" * (exact > 0)


def _avif_ratio(streams: Sequence[StreamMeasurement]) -> str:
    """AVIF's bytes divided by ours, a lower bound where AVIF does not reach our PSNR."""
    bound = "" if all(s.avif_reaches for s in streams) else "≥ "
    return bound + f"{fmean(s.avif_bytes / s.bytes for s in streams):.2f}"


def _conditions(result: Result) -> str:
    return f"Rate {result['rate']:g}, {result['pictures']} pictures, {machine_words(result)}"


def _size(entry: Result) -> str:
    return f"{entry['width']}×{entry['height']}"
