"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Device = Literal["auto", "cpu", "cuda"]

StoreOption = Annotated[Path | None, typer.Option(help="Folder of models, if not the built-in.")]
ModelOption = Annotated[str | None, typer.Option(help="Compress with this model of the store.")]
DeviceOption = Annotated[Device | None, typer.Option(help="Where the networks run.")]
CheckOption = Annotated[
    bool | None, typer.Option("--check/--no-check", help="Decode each fresh stream and compare.")
]
MetadataOption = Annotated[
    Literal["none", "icc", "all"],
    typer.Option(help="Keep the colour profile, that and Exif (GPS too), or nothing."),
]
FrameOption = Annotated[
    int | None,
    typer.Option(min=0, help="Frame or page of files that have several, from 0."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", "-f", help="Replace files.")]
ThreadsOption = Annotated[int | None, typer.Option(min=0, help="CPU threads; 0 takes all cores.")]
CompileOption = Annotated[
    Literal["auto", "off", "blocks", "whole"],
    typer.Option("--compile", help="What torch.compile is given; auto: blocks, on CUDA whole."),
]
