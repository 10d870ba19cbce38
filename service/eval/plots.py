"""Rate-distortion figures, one for each metric.

Our curves are thick, measured peers have markers, published curves are dashed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from service.codec.container import MS_SSIM
from service.errors import MissingExtra
from service.eval.curves import Curve
from service.eval.measurements import OURS, our_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS: Final = {
    "psnr_db": "PSNR of 8-bit RGB (dB)",
    "ms_ssim": "MS-SSIM (dB: -10 log10(1 - MS-SSIM))",
    "ssimulacra2": "SSIMULACRA 2",
}
COLOURS: Final = {
    "jpeg": "#9467bd",
    "webp": "#2ca02c",
    "avif": "#1f77b4",
    "jxl": "#ff7f0e",
    OURS: "#d62728",
    our_name(MS_SSIM): "#7f0000",
    f"{OURS}-latent-kl": "#e377c2",
    f"{OURS}-latent-own": "#8c564b",
}
MARKERS: Final = ("o", "s", "^", "x")
"""Markers of the peers of one family."""

PUBLISHED_COLOURS: Final = (
    "#000000", "#7f7f7f", "#8c564b", "#e377c2", "#17becf", "#bcbd22", "#5f4690", "#2f8f7f",
)  # fmt: skip
MARGIN: Final = 1.6
"""The figure shows from our least bits per pixel divided by this to our most multiplied by it."""

TICKS: Final = (0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2, 3)
SPAN: Final = (0.1, 1.6)
LOW_SPAN: Final = (0.02, 0.4)
"""Bits per pixel that figures show in any case, and those of latent streams."""


def draw(
    curves: Sequence[Curve],
    metric: str,
    title: str,
    path: Path,
    span: tuple[float, float] = SPAN,
) -> None:
    """Draw the figure of a metric as a PNG file.

    Args:
        curves: measured and published ones (those with a `source`).
        metric: "psnr_db", "ms_ssim" or "ssimulacra2".
        span: bits per pixel that the figure shows in any case.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtra("figures need pip install 'rankpress[eval]'") from error

    figure = Figure(figsize=(11.5, 6.2), layout="constrained")
    axes = figure.add_subplot()
    ours = [p.bpp for c in curves if c.name.startswith(OURS) for p in c.points]
    low = min([span[0], *(bpp / MARGIN for bpp in ours)])
    high = max([span[1], *(bpp * MARGIN for bpp in ours)])
    inside: list[float] = []
    for curve, colour, marker in _styled([c for c in curves if c.has(metric)]):
        bpp = [p.bpp for p in curve.points]
        values = [p.value(metric) or 0.0 for p in curve.points]
        inside += [v for b, v in zip(bpp, values, strict=True) if low <= b <= high]
        is_ours, measured = curve.name.startswith(OURS), curve.source is None
        axes.plot(
            bpp,
            values,
            "-" if measured else "--",
            color=colour,
            linewidth=2.6 if is_ours else 1.2,
            marker=marker,
            markersize=9 if is_ours else 4.5,
            zorder=3 if is_ours else 2 if measured else 1,
            label=curve.title if measured else f"{curve.title}, published",
        )
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    if inside:
        room = 0.05 * (max(inside) - min(inside)) + 0.2
        axes.set_ylim(min(inside) - room, max(inside) + room)
    _decorate(axes, metric, title, low, high)
    figure.savefig(path, dpi=120)


def _decorate(axes: Axes, metric: str, title: str, low: float, high: float) -> None:
    """Set ticks in plain numbers, grid, legend and labels."""
    from matplotlib.ticker import NullFormatter

    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.set_xlabel("bits per pixel, whole files (log scale)")
    axes.set_ylabel(LABELS[metric])
    axes.set_title(title)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))


def _styled(curves: Sequence[Curve]) -> list[tuple[Curve, str, str | None]]:
    """Return each curve with its colour and marker: a colour a family, no markers if published."""
    counts: dict[str, int] = {}
    styled: list[tuple[Curve, str, str | None]] = []
    for curve in curves:
        family = curve.name.split("-")[0] if curve.source is None else "published"
        number = counts[family] = counts.get(family, -1) + 1
        if curve.source is None:
            colour = COLOURS.get(curve.name) or COLOURS.get(family, "#17becf")
            styled.append((curve, colour, MARKERS[number % len(MARKERS)]))
        else:
            styled.append((curve, PUBLISHED_COLOURS[number % len(PUBLISHED_COLOURS)], None))
    return styled
