"""What codecs, models and training measured as Markdown tables, for the terminal and the README."""

from __future__ import annotations

from typing import Final

from service.codec.container import PSNR, TUNES
from service.eval.rows import OURS, our_name
from service.eval.tables import Result, machine_words, ms, table

TITLES: Final = {"psnr_db": "PSNR", "ms_ssim": "MS-SSIM", "ssimulacra2": "SSIMULACRA 2"}


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
        steps = "the backbone" if own else str(rate["training"].get("steps", "with the backbone"))
        share = "" if own else f"{size / base_bytes:.2%}"
        name = f"{rate['rate']:g}"
        if rate.get("tune", PSNR) != PSNR:
            name += f", {rate['tune']}"
        found = f"{rate['kodak_bpp']:.4f}", f"{rate['kodak_psnr_db']:.2f}", _number(likeness, 4)
        rows.append([name, f"{rate['lmbda']:g}", *found, f"{size:,}", share, steps])
    figures = "Kodak bpp", "Kodak dB", "MS-SSIM"
    head = ["rate", "lmbda", *figures, "bytes", "of the backbone", "steps"]
    return table(head, rows)


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
                "-" if g["ms_per_step"] is None else ms(g["ms_per_step"]),
            ]
        )
    head = ["domain, pictures", "effort", "adapted", "BD-rate", "R + lmbda·D", "bytes"]
    head += ["dB", "update, of bytes", "own, of streams", "s", "ms a step"]
    rates = ", ".join(f"{r:g}" for r in summary["rates"])
    return f"Rates {rates}, {machine_words(summary)}\n\n" + table(head, rows)


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


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
