"""Results as Markdown tables, for the terminal and for the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from service.codec.container import PSNR, TUNES
from service.eval.rows import OURS, our_name

Result = Mapping[str, Any]
TITLES: Final = {"psnr_db": "PSNR", "ms_ssim": "MS-SSIM", "ssimulacra2": "SSIMULACRA 2"}


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


def eval_table(summary: Result) -> str:
    """Our points, then our bytes against each peer's at equal quality, then BD-rates.

    Times are left to `bench_tables`: here each is one run, beside whatever else the machine does.
    """
    parts = [
        _points(summary),
        _between_tunes(summary),
        _at_equal(summary),
        _published(summary),
        _bd_rates(summary),
    ]
    return "\n\n".join(p for p in parts if p)


def perceptual_table(summary: Result) -> str:
    """BD-rates by SSIMULACRA 2, lowest first."""
    found = summary["bd_rate"]
    rows = [
        [entry["codec"], f"{entry['percent']:+.1f} %", f"{entry['overlap']:.0%}"]
        for entry in sorted(found["ssimulacra2"], key=lambda e: float(e["percent"]))
    ]
    head = [f"BD-rate against {found['anchor']}", "SSIMULACRA 2", "overlap"]
    return table(head, rows) + f"\n\nMean of {summary['images']} pictures."


def rates_table(manifest: Result) -> str:
    """What a model's manifest says of its rates."""
    files = manifest["files"]
    base_bytes = files["base.safetensors"]["bytes"]
    rows = []
    for rate in manifest["rates"]:
        likeness = rate.get("kodak_ms_ssim")
        own = rate["file"] is None
        size = base_bytes if own else files[rate["file"]]["bytes"]
        steps = "the backbone" if own else str(rate["training"].get("steps", ""))
        share = "" if own else f"{size / base_bytes:.2%}"
        name = f"{rate['rate']:g}"
        if rate.get("tune", PSNR) != PSNR:
            name += f", {rate['tune']}"
        found = f"{rate['kodak_bpp']:.4f}", f"{rate['kodak_psnr_db']:.2f}", _number(likeness, 4)
        rows.append([name, f"{rate['lmbda']:g}", *found, f"{size:,}", share, steps])
    figures = "Kodak bpp", "Kodak dB", "MS-SSIM"
    head = ["rate", "lmbda", *figures, "bytes", "of the backbone", "steps"]
    return table(head, rows)


def trials_table(manifest: Result) -> str:
    """What trials of ranks and placements cost and gained; empty where none are recorded."""
    records = [(r["rate"], r["training"]["trials"]) for r in manifest["rates"]
               if "trials" in r["training"]]  # fmt: skip
    parts = []
    for rate, record in records:
        start = record["start"]["loss"]
        rows = [
            [t["name"], f"{t['bytes']:,}", f"{t['bpp']:.4f}", f"{t['mse']:.2f}",
             f"{t['loss']:.4f}", f"{t['loss'] / start - 1:+.2%}"]
            for t in record["found"]
        ]  # fmt: skip
        head = [f"rate {rate:g}, {record['steps']} steps from the base, ranks",
                "bytes", "bpp", "MSE", "loss", "against no training"]  # fmt: skip
        parts.append(table(head, rows))
    return "\n\n".join(parts)


def compare_table(result: Result) -> str:
    """Backbones and recipes of `rankpress train compare`, each beside the first."""
    found = result["found"]
    first = next(iter(found.values()))
    rows = [
        [name, str(f["steps"]), f"{f['parameters'] / 1e6:.1f} M", f"{f['kmac_per_pixel']:.1f}",
         _ms(f["decode_ms"]), f"{f['train_s']:.0f}",
         *(f"{mine:.4f} ({mine / its - 1:+.1%})"
           for mine, its in zip(f["loss"], first["loss"], strict=True))]
        for name, f in found.items()
    ]  # fmt: skip
    head = [f"{result['pixels'] / 1e6:.0f} Mpixel from the transform start", "steps", "parameters",
            "g_s kMAC/pixel", "g_s ms", "training s",
            *(f"loss, {name}" for name in result["measured"])]  # fmt: skip
    return table(head, rows) + f"\n\n{_machine(result)}"


def speed_table(result: Result) -> str:
    """What `rankpress bench train` measured."""
    cells = [
        f"{result['pixels_per_s'] / 1e6:.2f} Mpixel/s", f"{_ms(result['step_ms'])} ms",
        f"{result['kmac_per_pixel']:.1f}", f"{result['tflops']:.2f}",
        f"{result['peak_tflops']:.2f}", f"{result['copy_gb_s']:.0f}",
    ]  # fmt: skip
    head = [f"{result['size']}, {result['batch']} crops of {result['crop']}", "pixels", "a step",
            "kMAC/pixel", "TFLOP/s", "of one large product", "a copy, GB/s"]  # fmt: skip
    return table(head, [["training", *cells]]) + f"\n\n{_machine(result)}"


def bench_tables(result: Result) -> dict[str, str]:
    """The tables of a benchmark by the name of their marker, those that were measured."""
    if result.get("what") == "rates":
        return {"swap": swap_table(result)}
    tables = {"latency": latency_table(result), "stages": stages_table(result)}
    if "memory" in result:
        tables["memory"] = memory_table(result)
    if "service" in result:
        tables["service"] = service_table(result)
    return tables


def latency_table(result: Result) -> str:
    """Median (p95) milliseconds by size, ours and the peers'."""
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
        [_size(e), *(f"{_ms(e[c]['median'])} ({_ms(e[c]['p95'])})" for c in columns.values())]
        for e in result["latency"]
    ]
    return table(["ms, median (p95)", *columns], rows) + f"\n\n{_where(result)}"


def stages_table(result: Result) -> str:
    """Milliseconds by stage and size."""
    found: list[list[str]] = []
    for way in ("compress_ms", "decompress_ms"):
        names = dict.fromkeys(n for e in result["stages"] for n in e[way])
        for name in sorted(names, key=lambda n: -result["stages"][0][way].get(n, 0)):
            cells = [_ms(e[way].get(name, 0.0)) for e in result["stages"]]
            found.append([f"{way.removesuffix('_ms')}: {name}", *cells])
    return table(["ms, median", *(_size(e) for e in result["stages"])], found)


def swap_table(result: Result) -> str:
    """What a change of rate costs, and a server's throughput of each rate and of all mixed."""
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
            ["weights of a rate merged from the base", f"{_ms(swap['merged'])} ms"],
            ["a whole model read, checked and made resident", f"{_ms(swap['loaded'])} ms"],
        ]
    return table([f"{_size(result)}, {result['clients']} clients", "measured"], rows) + (
        f"\n\n{_machine(result)}"
    )


def memory_table(result: Result) -> str:
    """Peak MiB by size."""
    columns = {
        "models loaded": "loaded_mib",
        "compress": "compress_mib",
        "decompress": "decompress_mib",
        "decompress to PNG": "decompress_to_png_mib",
    }
    rows = [[_size(e), *(f"{e[c]:,.0f}" for c in columns.values())] for e in result["memory"]]
    return table(["peak MiB of the process", *columns], rows)


def service_table(result: Result) -> str:
    """Requests a second and latencies by concurrency, and at twice the capacity."""
    found = []
    for way in ("compress", "decompress"):
        entry = result["service"][way]
        for load in (*entry["closed_loop"], entry["overload"]):
            clients = load.get("clients")
            offered = load.get("offered_per_second")
            label = _clients(clients) if clients else f"{offered:.1f}/s offered (2x capacity)"
            found.append([f"{way}, {label}", f"{load['per_second']:.1f}", _ms(load["median_ms"]),
                          _ms(load["p95_ms"]), str(load["answered_503"]),
                          str(load["answered_otherwise"])])  # fmt: skip
    head = ["over loopback", "200/s", "median ms", "p95 ms", "503s", "other failures"]
    return table(head, found)


def jobs_table(result: Result) -> str:
    """Latency of compress without and beside a job, and the job's pace."""
    ways = {"no job": result["without"], "beside a job": result["beside"]}
    rows = [
        [name, f"{way['per_second']:.2f}", _ms(way["median_ms"]), _ms(way["p95_ms"])]
        for name, way in ways.items()
    ]
    pace = f"{result['job_steps_per_second']:.1f} steps a second"
    return table(["compress, 1 client", "200/s", "median ms", "p95 ms"], rows) + (
        f"\n\nThe job, of effort {result['effort']}, makes {pace} meanwhile. "
        f"{_size(result)}, rate {result['rate']:g}, {_machine(result)}"
    )


def decoder_table(result: Result) -> str:
    """Start, times, memory and size of the light decoder."""
    rows = [
        [_size(e), f"{e['import_s']:.2f}", f"{e['first_s']:.2f}", _ms(e["decode_ms"]),
         _ms(e["decode_p95_ms"]), f"{e['peak_mib']:,.0f}"]
        for e in result["times"]
    ]  # fmt: skip
    head = ["light decoder", "import s", "first picture after s", "then ms", "p95 ms", "peak MiB"]
    sizes = result["installed_mb"]
    largest = sorted(sizes, key=lambda n: -sizes[n])[:4]
    parts = ", ".join(f"{n} {sizes[n]:.0f}" for n in largest)
    return table(head, rows) + (
        f"\n\n{_where(result)} Installed: {sum(sizes.values()):.0f} MB ({parts})."
    )


def agreement_table(result: Result) -> str:
    """The light decoder's pixels, and torch's as they are served, against torch in float32."""
    found = [
        [f"{a['rate']:g}" + f" ({a['tune']})" * (a["tune"] != "psnr"), str(a["largest"]),
         f"{a['share']:.4%}", str(a["server_largest"]), f"{a['server_share']:.1%}"]
        for a in result["agreement"]
    ]  # fmt: skip
    columns = ["rate", "light: largest difference", "samples that differ",
               "torch as served: largest", "samples that differ"]  # fmt: skip
    return table(columns, found)


def _points(summary: Result) -> str:
    tunes = {our_name(tune): tune for tune in TUNES}
    found = [(c["name"], p) for c in summary["curves"] if c["name"] in tunes for p in c["points"]]
    several = len({name for name, _ in found}) > 1
    ours = [p for _, p in found]
    rows = [
        [f"{p['setting']}, {tunes[name]}" if several else p["setting"], f"{p['bpp']:.3f}",
         _number(p["psnr_db"], 2), _number(p["ms_ssim"], 4),
         *([_number(p["ssimulacra2"], 1)] if p["ssimulacra2"] is not None else [])]
        for name, p in found
    ]  # fmt: skip
    perceptual = ["SSIMULACRA 2"] if ours and ours[0]["ssimulacra2"] is not None else []
    head = ["Rankpress", "bpp", "PSNR dB", "MS-SSIM", *perceptual]
    return table(head, rows) if rows else ""


def _between_tunes(summary: Result) -> str:
    """What our other ladders cost at equal quality, against the first."""
    found = {m: {e["codec"]: e for e in entries} for m, entries in summary.get("tunes", {}).items()}
    names = dict.fromkeys(name for entries in found.values() for name in entries)
    metrics = [m for m in found if found[m]]
    rows = [
        [name, *(f"{found[m][name]['percent']:+.1f} %" if name in found[m] else "-"
                 for m in metrics)]
        for name in names
    ]  # fmt: skip
    head = [f"BD-rate against {OURS}", *(TITLES[m] for m in metrics)]
    return table(head, rows) if rows else ""


def _at_equal(summary: Result) -> str:
    """Our bytes against the peers', a table for each metric, a column for each of our settings."""
    points = {c["name"]: c["points"] for c in summary["curves"]}
    parts = []
    for metric, found in summary["at_equal"].items():
        name = found[0]["codec"] if found else OURS
        settings = [p["setting"] for p in points.get(name, [])]
        cells = {(e["peer"], e["setting"]): e for e in found}
        rows = []
        for peer in dict.fromkeys(e["peer"] for e in found):
            rows.append([peer, *(_versus(cells.get((peer, s))) for s in settings)])
        who = "our" if name == OURS else name
        head = [f"{who} bytes at equal {TITLES[metric]}", *settings]
        parts += [table(head, rows)] if rows else []
    return "\n\n".join(parts)


def adaptation_table(summary: Result) -> str:
    """Gains of instance adaptation by domain, effort and what was adapted."""
    rows = []
    for g in summary["gains"]:
        found = g["bd_rate_percent"]
        loss = "-" if g["loss_percent"] is None else f"{g['loss_percent']:+.1f} %"
        rows.append(
            [
                f"{g['group']}, {g['images']}",
                str(g["effort"]),
                _adapted(g),
                "-" if found is None else f"{found:+.1f} %",
                loss,
                f"{g['bytes_percent']:+.1f} %",
                f"{round(g['gain_db'], 2) + 0:+.2f}",  # + 0: no -0.00
                f"{100 * g['update_share']:.1f} %",
                _streams(g["with_own"]) if g["effort"] else "-",
                f"{g['seconds']:.0f}",
                "-" if g["ms_per_step"] is None else _ms(g["ms_per_step"]),
            ]
        )
    head = ["domain, pictures", "effort", "adapted", "BD-rate", "R + lmbda·D", "bytes"]
    head += ["dB", "update, of bytes", "own, of streams", "s", "ms a step"]
    rates = ", ".join(f"{r:g}" for r in summary["rates"])
    return f"Rates {rates}, {_machine(summary)}\n\n" + table(head, rows)


def _adapted(gain: Result) -> str:
    """What a row of gains adapted."""
    if gain["effort"] == 0:
        return f"ready update, in {_streams(gain['with_update'])} of streams"
    return "latents and decoder" if gain["kind"] == "both" else "latents alone"


def _streams(share: float) -> str:
    return f"{100 * share:.0f} %"


def _versus(entry: Result | None) -> str:
    if entry is None:
        return "-"
    text = f"{entry['percent']:+.1f} %"
    if entry["compared"] < entry["images"]:
        text += f" ({entry['compared']} of {entry['images']})"
    return text


def _published(summary: Result) -> str:
    """Our bytes against published means, a column for each of our settings."""
    entries = summary["published_at_our_psnr"]
    cells = {(e["title"], e["setting"]): f"{e['percent']:+.1f} %" for e in entries}
    settings = [p["setting"] for c in summary["curves"] if c["name"] == OURS for p in c["points"]]
    rows = [
        [title, *(cells.get((title, s), "-") for s in settings)]
        for title in dict.fromkeys(e["title"] for e in entries)
    ]
    return table(["our bytes at equal PSNR, published", *settings], rows) if rows else ""


def _bd_rates(summary: Result) -> str:
    found = summary["bd_rate"]
    if not found or not any(e["codec"] == OURS for e in found["psnr_db"]):
        return ""
    quality = {e["codec"]: e for e in found["ms_ssim"]}
    rows = [
        [e["codec"], f"{e['percent']:+.1f} %", f"{100 * e['overlap']:.0f} %",
         f"{quality[e['codec']]['percent']:+.1f} %" if e["codec"] in quality else "-"]
        for e in sorted(found["psnr_db"], key=lambda e: float(e["percent"]))
    ]  # fmt: skip
    return table([f"BD-rate against {found['anchor']}", "PSNR", "overlap", "MS-SSIM"], rows)


def _where(result: Result) -> str:
    return f"Rate {result['rate']:g}, {result['pictures']} pictures, {_machine(result)}"


def _machine(result: Result) -> str:
    machine = result["machine"]
    device = "" if machine["device"] == "cpu" else f", networks on {machine['device']}"
    cores = f"{machine['cores']} cores{device}"
    return f"{machine['cpu']}, {cores}, load {machine['load']:g} at the start."


def _size(entry: Result) -> str:
    return f"{entry['width']}×{entry['height']}"


def _clients(number: int) -> str:
    return "1 client" if number == 1 else f"{number} clients"


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
