"""Results as Markdown tables, for the terminal and for the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from service.eval.rows import OURS

Result = Mapping[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, columns padded so that it reads as text too; numbers to the right."""
    widths = [max(len(str(r[i])) for r in (head, *rows)) for i in range(len(head))]
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    lines = [head, rule, *rows]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) if i == 0 else c.rjust(w)
                          for i, (c, w) in enumerate(zip(line, widths, strict=True))) + " |"
        for line in lines
    )  # fmt: skip


def eval_table(summary: Result) -> str:
    """Our points, then our bytes against each peer's at equal quality, then BD-rates."""
    parts = [_points(summary), _at_equal(summary), _published(summary), _bd_rates(summary)]
    return "\n\n".join(p for p in parts if p)


def rates_table(manifest: Result) -> str:
    """What a model's manifest says of its rates."""
    files = manifest["files"]
    base_bytes = files["base.safetensors"]["bytes"]
    rows = []
    for rate in manifest["rates"]:
        own = rate["file"] is None
        size = base_bytes if own else files[rate["file"]]["bytes"]
        steps = "the backbone" if own else str(rate["training"].get("steps", ""))
        share = "" if own else f"{size / base_bytes:.2%}"
        figures = f"{rate['kodak_bpp']:.4f}", f"{rate['kodak_psnr_db']:.2f}"
        rows.append(
            [f"{rate['rate']:g}", f"{rate['lmbda']:g}", *figures, f"{size:,}", share, steps]
        )
    head = ["rate", "lmbda", "Kodak bpp", "Kodak dB", "bytes", "of the backbone", "steps"]
    return table(head, rows)


def bench_tables(result: Result) -> dict[str, str]:
    """The tables of a benchmark by the name of their marker, those that were measured."""
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
    text = table(["ms, median", *(_size(e) for e in result["stages"])], found)
    swap = result["swap_ms"]
    if not swap:
        return text
    return text + (
        f"\n\nChanging the rate: {_ms(swap['merged'])} ms to merge its weights, "
        f"{_ms(swap['cached'])} ms when they are cached."
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


def _points(summary: Result) -> str:
    ours = [p for c in summary["curves"] if c["name"] == OURS for p in c["points"]]
    rows = [
        [p["setting"], f"{p['bpp']:.3f}", _number(p["psnr_db"], 2), _number(p["ms_ssim"], 4),
         *([_number(p["ssimulacra2"], 1)] if p["ssimulacra2"] is not None else []),
         _ms(p["encode_ms"]), _ms(p["decode_ms"])]
        for p in ours
    ]  # fmt: skip
    perceptual = ["SSIMULACRA 2"] if ours and ours[0]["ssimulacra2"] is not None else []
    head = ["Rankpress", "bpp", "PSNR dB", "MS-SSIM", *perceptual, "encode ms", "decode ms"]
    return table(head, rows) if rows else ""


def _at_equal(summary: Result) -> str:
    """Our bytes against the peers', a table for each metric, a column for each of our settings."""
    titles = {"psnr_db": "PSNR", "ms_ssim": "MS-SSIM", "ssimulacra2": "SSIMULACRA 2"}
    points = {c["name"]: c["points"] for c in summary["curves"]}
    settings = [p["setting"] for p in points.get(OURS, [])]
    parts = []
    for metric, found in summary["at_equal"].items():
        cells = {(e["peer"], e["setting"]): e for e in found}
        rows = []
        for peer in dict.fromkeys(e["peer"] for e in found):
            middle = points[peer][len(points[peer]) // 2]
            rows.append([peer, *(_versus(cells.get((peer, s))) for s in settings),
                         _ms(middle["encode_ms"]), _ms(middle["decode_ms"])])  # fmt: skip
        head = [f"our bytes at equal {titles[metric]}", *settings, "encode ms", "decode ms"]
        parts += [table(head, rows)] if rows else []
    return "\n\n".join(parts)


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
    machine = result["machine"]
    device = "" if machine["device"] == "cpu" else f", networks on {machine['device']}"
    return (
        f"Rate {result['rate']:g}, {result['pictures']} pictures, {machine['cpu']}, "
        f"{machine['cores']} cores{device}, load {machine['load']:g} at the start."
    )


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
