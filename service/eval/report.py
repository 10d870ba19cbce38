"""Results of codecs, models and adaptation as Markdown tables, for terminal and documentation."""

from __future__ import annotations

from typing import Final

from service.codec.container import PSNR, TUNES
from service.eval.measurements import OURS, our_name
from service.eval.tables import Result, machine_words, ms, table

TITLES: Final = {"psnr_db": "PSNR", "ms_ssim": "MS-SSIM", "ssimulacra2": "SSIMULACRA 2"}


def eval_table(summary: Result) -> str:
    """Our points, then our bytes against each peer's at equal quality, then BD-rates.

    Times are not shown: each is of one run only. `rankpress bench codec` measures them.
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
    bd_rates = summary["bd_rate"]
    rows = [
        [entry["codec"], _percent(entry), f"{entry['overlap']:.0%}"]
        for entry in sorted(bd_rates["ssimulacra2"], key=lambda e: float(e["percent"]))
    ]
    head = [f"BD-rate against {bd_rates['anchor']}", "SSIMULACRA 2", "overlap"]
    return table(head, rows) + f"\n\nMean of {summary['images']} pictures."


def rates_table(manifest: Result) -> str:
    """Size, quality and training of each rate, from a model's manifest."""
    files = manifest["files"]
    base_bytes = files["base.safetensors"]["bytes"]
    rows = []
    for rate in manifest["rates"]:
        is_base = rate["file"] is None
        size = base_bytes if is_base else files[rate["file"]]["bytes"]
        training = "the backbone" if is_base else rate["training"].get("steps", "with the backbone")
        share = "" if is_base else f"{size / base_bytes:.2%}"
        name = f"{rate['rate']:g}"
        if rate.get("tune", PSNR) != PSNR:
            name += f", {rate['tune']}"
        rows.append(
            [
                name,
                f"{rate['lmbda']:g}",
                f"{rate['kodak_bpp']:.4f}",
                f"{rate['kodak_psnr_db']:.2f}",
                _number(rate.get("kodak_ms_ssim"), 4),
                f"{size:,}",
                share,
                str(training),
            ]
        )
    head = ["rate", "lmbda", "Kodak bpp", "Kodak dB", "MS-SSIM", "bytes", "of the backbone"]
    head += ["steps"]
    return table(head, rows)


def _points(summary: Result) -> str:
    tunes = {our_name(tune): tune for tune in TUNES}
    points = [(c["name"], p) for c in summary["curves"] if c["name"] in tunes for p in c["points"]]
    several = len({name for name, _ in points}) > 1
    rows = [
        [
            f"{p['setting']}, {tunes[name]}" if several else p["setting"],
            f"{p['bpp']:.3f}",
            _number(p["psnr_db"], 2),
            _number(p["ms_ssim"], 4),
            *([_number(p["ssimulacra2"], 1)] if p["ssimulacra2"] is not None else []),
        ]
        for name, p in points
    ]
    perceptual = ["SSIMULACRA 2"] if points and points[0][1]["ssimulacra2"] is not None else []
    head = ["Rankpress", "bpp", "PSNR dB", "MS-SSIM", *perceptual]
    return table(head, rows) if rows else ""


def _between_tunes(summary: Result) -> str:
    """BD-rates of our other tunes against tune PSNR."""
    by_metric = {
        m: {e["codec"]: e for e in entries} for m, entries in summary.get("tunes", {}).items()
    }
    names = dict.fromkeys(name for entries in by_metric.values() for name in entries)
    metrics = [m for m in by_metric if by_metric[m]]
    rows = [
        [name, *(_percent(by_metric[m][name]) if name in by_metric[m] else "-" for m in metrics)]
        for name in names
    ]
    head = [f"BD-rate against {OURS}", *(TITLES[m] for m in metrics)]
    return table(head, rows) if rows else ""


def _at_equal(summary: Result) -> str:
    """Our bytes against the peers': a table for each metric, a column for each of our settings."""
    points = {c["name"]: c["points"] for c in summary["curves"]}
    parts = []
    for metric, entries in summary["at_equal"].items():
        name = entries[0]["codec"] if entries else OURS
        settings = [p["setting"] for p in points.get(name, [])]
        cells = {(e["peer"], e["setting"]): e for e in entries}
        rows = []
        for peer in dict.fromkeys(e["peer"] for e in entries):
            rows.append([peer, *(_compared_percent(cells.get((peer, s))) for s in settings)])
        who = "our" if name == OURS else name
        head = [f"{who} bytes at equal {TITLES[metric]}", *settings]
        parts += [table(head, rows)] if rows else []
    return "\n\n".join(parts)


def adaptation_table(summary: Result) -> str:
    """Gains of adaptation by domain, effort and what was adapted."""
    rows = []
    for g in summary["gains"]:
        bd_rate, loss = g["bd_rate_percent"], g["loss_percent"]
        rows.append(
            [
                f"{g['group']}, {g['images']}",
                str(g["effort"]),
                _adapted(g),
                "-" if bd_rate is None else f"{bd_rate:+.1f} %",
                "-" if loss is None else f"{loss:+.1f} %",
                f"{g['bytes_percent']:+.1f} %",
                f"{round(g['gain_db'], 2) + 0:+.2f}",  # + 0: no -0.00
                f"{100 * g['update_share']:.1f} %",
                _share_of_streams(g["with_own"]) if g["effort"] else "-",
                f"{g['seconds']:.0f}",
                "-" if g["ms_per_step"] is None else ms(g["ms_per_step"]),
            ]
        )
    head = ["domain, pictures", "effort", "adapted", "BD-rate", "R + lmbda·D", "bytes"]
    head += ["dB", "update, of bytes", "own, of streams", "s", "ms a step"]
    rates = ", ".join(f"{r:g}" for r in summary["rates"])
    return f"Rates {rates}, {machine_words(summary)}\n\n" + table(head, rows)


def _adapted(gain: Result) -> str:
    """What was adapted to get some gains."""
    if gain["effort"] == 0:
        return f"ready update, in {_share_of_streams(gain['with_update'])} of streams"
    return "latents and decoder" if gain["kind"] == "both" else "latents alone"


def _share_of_streams(share: float) -> str:
    return f"{100 * share:.0f} %"


def _compared_percent(entry: Result | None) -> str:
    if entry is None:
        return "-"
    text = _percent(entry)
    if entry["compared"] < entry["images"]:
        text += f" ({entry['compared']} of {entry['images']})"
    return text


def _published(summary: Result) -> str:
    """Our bytes against published means, a column for each of our settings."""
    entries = summary["published_at_our_psnr"]
    cells = {(e["title"], e["setting"]): _percent(e) for e in entries}
    settings = [p["setting"] for c in summary["curves"] if c["name"] == OURS for p in c["points"]]
    rows = [
        [title, *(cells.get((title, s), "-") for s in settings)]
        for title in dict.fromkeys(e["title"] for e in entries)
    ]
    return table(["our bytes at equal PSNR, published", *settings], rows) if rows else ""


def _bd_rates(summary: Result) -> str:
    bd_rates = summary["bd_rate"]
    if not bd_rates or not any(e["codec"] == OURS for e in bd_rates["psnr_db"]):
        return ""
    by_ms_ssim = {e["codec"]: _percent(e) for e in bd_rates["ms_ssim"]}
    rows = [
        [e["codec"], _percent(e), f"{100 * e['overlap']:.0f} %", by_ms_ssim.get(e["codec"], "-")]
        for e in sorted(bd_rates["psnr_db"], key=lambda e: float(e["percent"]))
    ]
    return table([f"BD-rate against {bd_rates['anchor']}", "PSNR", "overlap", "MS-SSIM"], rows)


def _percent(entry: Result) -> str:
    return f"{entry['percent']:+.1f} %"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
