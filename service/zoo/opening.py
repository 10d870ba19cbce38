"""A CompressAI model opened by its name, with the adapters of a folder."""

from __future__ import annotations

from pathlib import Path

import torch

from service.errors import BadAdapter, BadParameter, StoreError
from service.zoo.adapters import pretrained
from service.zoo.codec import BASE_RATE, ZooCodec
from service.zoo.signing import machine_key


def open_zoo(
    chosen: str, adapters: Path | None, key_file: Path, max_pixels: int, threads: int = 0
) -> ZooCodec:
    """Open a CompressAI model with its published weights, and adapters from a folder.

    Args:
        chosen: name and quality of the model, "mbt2018-mean-4".
        adapters: folder of files `<rate>.safetensors`; None for no adapters.
        key_file: see `machine_key`. max_pixels: see ZooCodec.
        threads: of torch; 0 leaves torch's own choice.

    Raises:
        BadParameter: CompressAI has no such model.
        MissingExtra: CompressAI is not installed.
        StoreError: a file in the folder has another name, or does not fit the model.
    """
    name, _, quality = chosen.rpartition("-")
    if not name or not quality.isdigit():
        raise BadParameter(f"zoo is {chosen!r}, expected a name and quality: mbt2018-mean-4")
    if threads:
        torch.set_num_threads(threads)
    network = pretrained(name, int(quality))
    files = {}
    for path in [] if adapters is None else sorted(adapters.glob("*.safetensors")):
        if path.stem not in set("1235678"):
            raise StoreError(f"{path} is not named after a rate from 1 to 8 other than {BASE_RATE}")
        files[int(path.stem)] = path.read_bytes()
    try:
        return ZooCodec(chosen, network, files, machine_key(key_file), max_pixels)
    except BadAdapter as error:
        raise StoreError(f"an adapter in {adapters} does not fit {chosen}: {error}") from error
