"""Measurements of a picture with a codec at a setting, and measurements as rows of a CSV file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from service.codec.container import PSNR, TUNES
from service.errors import BadParameter
from service.files import write_whole

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    RowT = TypeVar("RowT", bound=DataclassInstance)

OURS: Final = "rankpress"
"""Our codec at tune PSNR; each other tune is a codec of its own."""


def our_name(tune: str) -> str:
    """Return our codec's name at a tune: "rankpress", or "rankpress-ms-ssim"."""
    return OURS if tune == PSNR else f"{OURS}-{tune}"


OUR_NAMES: Final = tuple(our_name(tune) for tune in TUNES)


@dataclass(frozen=True)
class Measurement:
    """Size, quality and times of one compressed file.

    Attributes:
        image: name of the picture. sha256: of its pixels, first 16 hex digits.
        width, height: of the picture in pixels.
        codec: one of OUR_NAMES, or a peer's name. setting: "rate 4", or "q65".
        bytes: of the whole file. bpp: bits of the file per pixel.
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
        """Pixels, codec and setting: measurements with equal keys are of the same file."""
        return self.sha256, self.codec, self.setting

    def value(self, metric: str) -> float | None:
        """Return a metric by its name; None where it was not measured or is infinite."""
        value: float | None = getattr(self, metric)
        return value if value is not None and math.isfinite(value) else None


def write_rows(path: Path, row_type: type[RowT], rows: Iterable[RowT]) -> None:
    """Write rows as CSV with a header; floats have six digits, None is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [f.name for f in fields(row_type)])
    writer.writeheader()
    for row in rows:
        cells = {n: f"{v:.6g}" if isinstance(v, float) else v for n, v in asdict(row).items()}
        writer.writerow(cells)
    write_whole(path, text.getvalue().encode())


def read_rows(path: Path, row_type: type[RowT]) -> tuple[RowT, ...]:
    """Read the rows that `write_rows` wrote.

    Raises:
        BadParameter: the file does not hold rows of that type.
    """
    row_adapter = TypeAdapter(row_type)
    with path.open(newline="") as file:
        try:
            return tuple(
                row_adapter.validate_python({name: text or None for name, text in row.items()})
                for row in csv.DictReader(file)
            )
        except ValidationError as error:
            names = ", ".join(f.name for f in fields(row_type))
            raise BadParameter(f"{path} is not a CSV file with the columns {names}") from error
