"""One measurement of one picture with one codec at one setting; the CSV file that keeps them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

from service.codec.container import PSNR, TUNES
from service.errors import BadParameter
from service.files import write_whole

OURS: Final = "rankpress"
"""Our codec at its first tune; other tunes are codecs of their own."""


def our_name(tune: str) -> str:
    """Our codec's name at a tune: "rankpress", or "rankpress-ms-ssim"."""
    return OURS if tune == PSNR else f"{OURS}-{tune}"


OUR_NAMES: Final = tuple(our_name(tune) for tune in TUNES)


@dataclass(frozen=True)
class Row:
    """What one file cost and what it kept.

    Attributes:
        image: name of the picture. sha256: of its pixels, first 16 hex digits.
        codec: one of OUR_NAMES, or a peer's name. setting: "rate 4", or "q65".
        bytes: of the whole file. bpp: bits of it per pixel.
        psnr_db, ms_ssim, ssimulacra2: see metrics.py; None where not measured.
        encode_ms, decode_ms: in memory, pixels to file bytes and back, one run.
    """

    image: str
    sha256: str
    width: int
    height: int
    codec: str
    setting: str
    bytes: int
    bpp: float
    psnr_db: float
    ms_ssim: float | None
    ssimulacra2: float | None
    encode_ms: float
    decode_ms: float

    @property
    def key(self) -> tuple[str, str, str]:
        """What the row is about."""
        return self.sha256, self.codec, self.setting

    def value(self, metric: str) -> float | None:
        """A metric by its name; None where it was not measured or is infinite."""
        found = {"psnr_db": self.psnr_db, "ms_ssim": self.ms_ssim, "ssimulacra2": self.ssimulacra2}
        value = found[metric]
        return value if value is not None and math.isfinite(value) else None


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write the rows as CSV; what was not measured is empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [f.name for f in fields(Row)])
    writer.writeheader()
    for row in rows:
        writer.writerow({k: _written(v) for k, v in asdict(row).items()})
    write_whole(path, text.getvalue().encode())


def read_rows(path: Path) -> tuple[Row, ...]:
    """Read what `write_rows` wrote. Raises BadParameter: another kind of file."""
    with path.open(newline="") as file:
        try:
            return tuple(_parsed(row) for row in csv.DictReader(file))
        except (KeyError, ValueError, TypeError) as error:
            raise BadParameter(f"{path} does not hold rows of an evaluation") from error


def _written(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def _parsed(row: dict[str, str]) -> Row:
    return Row(
        image=row["image"],
        sha256=row["sha256"],
        width=int(row["width"]),
        height=int(row["height"]),
        codec=row["codec"],
        setting=row["setting"],
        bytes=int(row["bytes"]),
        bpp=float(row["bpp"]),
        psnr_db=float(row["psnr_db"]),
        ms_ssim=float(row["ms_ssim"]) if row["ms_ssim"] else None,
        ssimulacra2=float(row["ssimulacra2"]) if row["ssimulacra2"] else None,
        encode_ms=float(row["encode_ms"]),
        decode_ms=float(row["decode_ms"]),
    )
