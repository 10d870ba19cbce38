"""Measurements as rows of a CSV file: one dataclass of numbers and texts a row."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from service.errors import BadParameter
from service.files import write_whole

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    RowT = TypeVar("RowT", bound=DataclassInstance)

_PARSERS: Final[Mapping[str, Callable[[str], Any]]] = {
    "str": str,
    "int": int,
    "float": float,
    "float | None": lambda text: float(text) if text else None,
}
"""How a cell is read, by the type of its field."""


def write_rows(path: Path, row_type: type[RowT], rows: Iterable[RowT]) -> None:
    """Write rows as CSV with a header; floats have six digits, None is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [f.name for f in fields(row_type)])
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in asdict(row).items()})
    write_whole(path, text.getvalue().encode())


def read_rows(path: Path, row_type: type[RowT]) -> tuple[RowT, ...]:
    """Read the rows that `write_rows` wrote.

    Raises:
        BadParameter: the file does not hold rows of that type.
    """
    with path.open(newline="") as file:
        try:
            return tuple(
                row_type(**{f.name: _PARSERS[str(f.type)](row[f.name]) for f in fields(row_type)})
                for row in csv.DictReader(file)
            )
        except (KeyError, ValueError, TypeError) as error:
            names = ", ".join(f.name for f in fields(row_type))
            raise BadParameter(f"{path} is not a CSV file with the columns {names}") from error


def _cell(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value
