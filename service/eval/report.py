"""Results of codecs, models and adaptation as Markdown tables, for terminal and documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from service.codec.container import PSNR, TUNES
from service.eval.measurements import OURS, our_name

Result = Mapping[str, Any]

TITLES: Final = {"psnr_db": "PSNR", "ms_ssim": "MS-SSIM", "ssimulacra2": "SSIMULACRA 2"}
LADDER_PEERS: Final = {
    "avif-s6-420": "bytes against AVIF",
    "webp-m6": "against WebP",
    "jpeg-420": "against JPEG",
}
"""Peers in the table of the ladder, with the heads of their columns."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with padded columns, all but the first aligned to the right."""
    widths = [max(2, *(len(str(r[i])) for r in (head, *rows))) for i in range(len(head))]
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    lines = [head, rule, *rows]
    return "\n".join(
        f"| {' | '.join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])} |"
        for line in lines
    )


def pivot(corner: str, columns: Sequence[str], cells: Mapping[tuple[str, str], str]) -> str:
    """Return a table of cells by row and column, a dash for each that is missing; "" if all are."""
    rows = [
        [row, *(cells.get((row, column), "-") for column in columns)]
        for row in dict.fromkeys(row for row, _ in cells)
    ]
    return table([corner, *columns], rows) if rows else ""


def machine_words(result: Result) -> str:
    """Return the machine that a result was measured on, as a sentence."""
    machine = result["machine"]
    cores = f"{machine['cores']} cores"
    if machine["device"] != "cpu":
        cores += f", networks on {machine['device']}"
    return f"{machine['cpu']}, {cores}, load {machine['load']:g} at the start."


def ms(value: float | None) -> str:
    """Return milliseconds as a text; a dash for None."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def eval_table(summary: Result) -> str:
    """Our points, then our bytes against each peer's at equal quality, then BD-rates.

    Times are not shown: each is of one run only. `rankpress bench codec` measures them.
    """
    parts = [_points(summary), _between_tunes(summary), *_at_equal(summary)]
    parts += [_published(summary), _bd_rates(summary)]
    return "\n\n".join(part for part in parts if part)


def ladder_table(kodak: Result) -> str:
    """The rates of the PSNR ladder, with our bytes against three peers' at equal PSNR."""
    entries = {
        (e["setting"], e["peer"]): e for e in kodak["at_equal"]["psnr_db"] if e["codec"] == OURS
    }
    rows = []
    for point in _points_of(kodak, OURS):
        row = [point["setting"], f"{point['bpp']:.3f}"]
        row += [f"{point['psnr_db']:.2f}", f"{point['ms_ssim']:.4f}"]
        against = (entries.get((point["setting"], peer)) for peer in LADDER_PEERS)
        row += ["-" if e is None else _compared_percent(e, "{compared} images") for e in against]
        rows.append(row)
    head = ["Kodak average", "bits per pixel", "PSNR dB", "MS-SSIM", *LADDER_PEERS.values()]
    return table(head, rows)


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
        row = [name, f"{rate['lmbda']:g}", f"{rate['kodak_bpp']:.4f}"]
        row += [f"{rate['kodak_psnr_db']:.2f}", _number(rate.get("kodak_ms_ssim"), 4)]
        rows.append([*row, f"{size:,}", share, str(training)])
    head = ["rate", "lmbda", "Kodak bpp", "Kodak dB", "MS-SSIM", "bytes", "of the backbone"]
    head += ["steps"]
    return table(head, rows)


def _points(summary: Result) -> str:
    tunes = {our_name(tune): tune for tune in TUNES}
    points = [(c["name"], p) for c in summary["curves"] if c["name"] in tunes for p in c["points"]]
    several = len({name for name, _ in points}) > 1
    perceptual = bool(points) and points[0][1]["ssimulacra2"] is not None
    rows = []
    for name, p in points:
        row = [f"{p['setting']}, {tunes[name]}" if several else p["setting"], f"{p['bpp']:.3f}"]
        row += [_number(p["psnr_db"], 2), _number(p["ms_ssim"], 4)]
        rows.append([*row, _number(p["ssimulacra2"], 1)] if perceptual else row)
    head = ["Rankpress", "bpp", "PSNR dB", "MS-SSIM", *(["SSIMULACRA 2"] if perceptual else [])]
    return table(head, rows) if rows else ""


def _between_tunes(summary: Result) -> str:
    """BD-rates of our other tunes against tune PSNR."""
    by_metric = {TITLES[m]: entries for m, entries in summary.get("tunes", {}).items() if entries}
    cells = {(e["codec"], m): _percent(e) for m, entries in by_metric.items() for e in entries}
    return pivot(f"BD-rate against {OURS}", [*by_metric], cells)


def _at_equal(summary: Result) -> list[str]:
    """Our bytes against the peers': a table for each metric, a column for each of our settings."""
    tables = []
    for metric, entries in summary["at_equal"].items():
        name = entries[0]["codec"] if entries else OURS
        cells = {(e["peer"], e["setting"]): _compared_percent(e) for e in entries}
        corner = f"{'our' if name == OURS else name} bytes at equal {TITLES[metric]}"
        tables.append(pivot(corner, [p["setting"] for p in _points_of(summary, name)], cells))
    return tables


def _points_of(summary: Result, name: str) -> list[Any]:
    """Points of the curve of a codec."""
    return [p for c in summary["curves"] if c["name"] == name for p in c["points"]]


def latent_tables(result: Result) -> str:
    """Latent streams: points of all codecs by folder, bytes at equal quality, and costs."""
    parts = []
    for group in result["groups"]:
        parts += [f"{group['group']}, mean of {group['images']} pictures:", _latent_points(group)]
    parts += ["Bytes at equal quality:", _latent_domains(result), latent_costs(result)]
    return "\n\n".join(parts)


def _latent_points(group: Result) -> str:
    rows = []
    for curve in group["curves"]:
        points = [*curve["points"]]
        if ceiling := group["ceilings"].get(curve["name"]):
            points.append(ceiling)
        for p in points:
            bpp = f"{p['bpp']:.3f}" if p["bytes"] else "-"
            numbers = [_number(p["psnr_db"], 2), _number(p["ms_ssim"], 4)]
            row = [f"{curve['name']}, {p['setting']}", bpp, *numbers]
            rows.append([*row, _number(p["ssimulacra2"], 1)])
    return table(["codec", "bpp", *(f"{t}{' dB' * (t == 'PSNR')}" for t in TITLES.values())], rows)


def _latent_domains(result: Result) -> str:
    """Our bytes against each peer's, a row for each kind of picture and metric."""
    cells = {
        (f"{e['domain']}, {TITLES[e['metric']]}", f"{_short(e['codec'])} / {e['peer']}"):
        _compared_percent(e)
        for e in result["domains"]
    }  # fmt: skip
    return pivot("pictures", sorted({column for _, column in cells}), cells)


def latent_costs(result: Result) -> str:
    """What latent streams cost, a row for each autoencoder, quality and effort."""
    rows = [
        [
            f"{_short(c['codec'])}, {c['setting']}, effort {c['effort']}",
            f"{c['bpp']:.3f}",
            f"{c['loss_percent']:+.1f} %",
            f"{100 * c['network_share']:.0f} %",
            f"{c['multiply_adds']:.0f}, at most {c['most_multiply_adds']:.0f}",
            f"{c['fit_s']:.1f}",
            ms(c["decode_ms"]),
        ]
        for c in result["costs"]
    ]
    head = ["latent stream", "bpp", "R + lmbda·D", "networks, of bytes", "multiply-adds a pixel"]
    return f"{table([*head, 's to fit', 'ms to decode'], rows)}\n\n{machine_words(result)}"


def _short(codec: str) -> str:
    return codec.rpartition("-")[2]


def parts_table(summary: Result) -> str:
    """What parts of streams show: a row for each rate and part."""
    rows = [
        [
            f"rate {part['rate']:g}, {_part_words(part['part'])}",
            f"{part['share']:.1%}" if part["part"][:2] != "1/" else "-",
            f"{part['psnr_db']:.2f}",
            f"{part['lowest_psnr_db']:.2f}",
        ]
        for part in summary["parts"]
    ]
    return table(["part", "of the bytes", "dB, mean", "dB, lowest"], rows)


def _part_words(part: str) -> str:
    return f"size {part}" if part[:2] == "1/" else f"up to {part}"


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
                _gain_db(g["gain_db"]),
                f"{100 * g['update_share']:.1f} %",
                _share_of_streams(g["with_own"]) if g["effort"] else "-",
                f"{g['seconds']:.0f}",
                ms(g["ms_per_step"]),
            ]
        )
    head = ["domain, pictures", "effort", "adapted", "BD-rate", "R + lmbda·D", "bytes"]
    head += ["dB", "update, of bytes", "own, of streams", "s", "ms a step"]
    rates = ", ".join(f"{r:g}" for r in summary["rates"])
    return f"Rates {rates}, {machine_words(summary)}\n\n" + table(head, rows)


def _gain_db(value: float | None) -> str:
    """Return a gain in dB, without -0.00; a dash where every stream is exact."""
    return "-" if value is None else f"{round(value, 2) + 0:+.2f}"


def _adapted(gain: Result) -> str:
    """What was adapted to get some gains."""
    if gain["effort"] == 0:
        return f"ready update, in {_share_of_streams(gain['with_update'])} of streams"
    return "latents and decoder" if gain["kind"] == "both" else "latents alone"


def _share_of_streams(share: float) -> str:
    return f"{100 * share:.0f} %"


def _compared_percent(entry: Result, part: str = "{compared} of {images}") -> str:
    """A difference in size, with the number of pictures compared where it was not all of them."""
    compared = "" if entry["compared"] == entry["images"] else f" ({part.format_map(entry)})"
    return _percent(entry) + compared


def _published(summary: Result) -> str:
    """Our bytes against published means, a column for each of our settings."""
    cells = {(e["title"], e["setting"]): _percent(e) for e in summary["published_at_our_psnr"]}
    settings = [p["setting"] for p in _points_of(summary, OURS)]
    return pivot("our bytes at equal PSNR, published", settings, cells)


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


WAYS: Final = {
    "base": "the base itself",
    "steps": "quantiser steps alone",
    "prompts": "prompts",
    "lowrank": "low rank",
    "full": "all weights",
}
"""Ways to vary the rate by their names in results."""


def ways_table(result: Result) -> str:
    """Return ways to vary the rate of one backbone: size, cost and R-D loss at each rate."""
    rates = sorted({w["rate"] for w in result["ways"]})
    lines: dict[tuple[int, str], list[Result]] = {}
    for way in result["ways"]:
        lines.setdefault((way["own_rate"], way["way"]), []).append(way)
    rows = []
    for (own, name), ways in lines.items():
        loss = {w["rate"]: f"{w['loss']:.4f}" for w in ways}
        first = ways[0]
        share = first["parameters"] / result["parameters"]
        size = f"{first['parameters']:,} ({share:.1%})" if first["parameters"] else "-"
        cost = f"{first['kmac_per_pixel']:.1f}", ms(first["milliseconds"])
        rows.append([f"{WAYS[name]}, base of rate {own}", size, *cost,
                     *(loss.get(r, "-") for r in rates)])  # fmt: skip
    head = ["way", "parameters a rate", "kMAC/pixel", "ms", *(f"loss at rate {r}" for r in rates)]
    steps = f"{result['steps']} steps, {result['pixels'] / 1e6:.0f} Mpixel for each way and rate."
    return f"{table(head, rows)}\n\n{steps} {machine_words(result)}"
