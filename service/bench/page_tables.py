"""The tables that only the documentation shows: the ladder in README.md, and all settings."""

from __future__ import annotations

from typing import Final

from pydantic.fields import FieldInfo

from service.eval.measurements import OURS
from service.eval.tables import Result, table
from service.settings import Settings

PEERS: Final = {
    "avif-s6-420": "bytes against AVIF",
    "webp-m6": "against WebP",
    "jpeg-420": "against JPEG",
}
"""Peers of the ladder's table, with the heads of their columns."""


def ladder_table(kodak: Result) -> str:
    """The rates of the PSNR ladder, with our bytes against three peers' at equal PSNR."""
    entries = {
        (entry["setting"], entry["peer"]): entry
        for entry in kodak["at_equal"]["psnr_db"]
        if entry["codec"] == OURS
    }
    points = next(curve["points"] for curve in kodak["curves"] if curve["name"] == OURS)
    rows = []
    for point in points:
        quality = f"{point['psnr_db']:.2f}", f"{point['ms_ssim']:.4f}"
        against = (_percent(entries.get((point["setting"], peer))) for peer in PEERS)
        rows.append([point["setting"], f"{point['bpp']:.3f}", *quality, *against])
    return table(["Kodak average", "bits per pixel", "PSNR dB", "MS-SSIM", *PEERS.values()], rows)


def settings_table() -> str:
    """Every environment variable with its default and what it sets."""
    rows = [
        f"| `RANKPRESS_{name.upper()}` | {_default(field)} | {_sentence(field)} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])


def _percent(entry: Result | None) -> str:
    """A difference in size; how many images were compared is said where it was not all of them."""
    if entry is None:
        return "-"
    compared = "" if entry["compared"] == entry["images"] else f" ({entry['compared']} images)"
    return f"{entry['percent']:+.1f} %{compared}"


def _default(field: FieldInfo) -> str:
    """The default as one would write it into the environment; nothing for none."""
    value = field.default
    if value is None or value == "":
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _sentence(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("|", "\\|")
