"""Options that several commands have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from service.files import check_target

Device = Literal["auto", "cpu", "cuda"]


def _check_record(record: Path | None) -> Path | None:
    """Refuse a file that could not be written, before any work is done for it."""
    if record is not None:
        check_target(record, overwrite=True)
    return record


RecordOption = Annotated[
    Path | None,
    typer.Option(callback=_check_record, help="Also write the results to this JSON file."),
]

StoreOption = Annotated[Path | None, typer.Option(help="Folder of models; default: the built-in.")]
ModelOption = Annotated[str | None, typer.Option(help="Compress with this model of the store.")]
DeviceOption = Annotated[Device | None, typer.Option(help="Where the networks run.")]
CheckOption = Annotated[
    bool | None, typer.Option("--check/--no-check", help="Decode each new stream and compare.")
]
MetadataOption = Annotated[
    Literal["none", "icc", "all"],
    typer.Option(help="Keep nothing, the colour profile, or also Exif with GPS."),
]
FrameOption = Annotated[
    int | None,
    typer.Option(min=0, help="Frame or page of a file that has several, from 0."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", "-f", help="Replace existing files.")]
ThreadsOption = Annotated[int | None, typer.Option(min=0, help="CPU threads; 0: all cores.")]
CompileOption = Annotated[
    Literal["auto", "off", "blocks", "whole"],
    typer.Option(
        "--compile", help="Parts to compile with torch.compile; auto: blocks, on CUDA whole."
    ),
]
