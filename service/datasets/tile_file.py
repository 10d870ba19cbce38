"""A file of uint8 tiles, cut once from folders of pictures.

Pictures from lossy files can be halved in size first, which removes their artefacts. Each picture
is covered by square tiles on an even grid, which overlap if its sides are not multiples of theirs;
smaller pictures are left out and counted. The file is safetensors with one tensor, "tiles"
[N, S, S, 3], which training maps into memory or copies to the GPU.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import safetensors
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from service.errors import BadImage, BadParameter
from service.files import files_in, whole_file
from service.images.kinds import recognise
from service.images.read import read_image
from service.picture import U8

MAX_PIXELS: Final = 4 * 10**8
HEADER_BYTES: Final = 4096
"""Bytes reserved for the safetensors header, whose numbers are known only at the end."""


@dataclass(frozen=True)
class TileRecord:
    """The record of how a file of tiles was cut."""

    size: int  # side of a tile in pixels
    halved: bool  # whether pictures from lossy files were halved
    pictures: int  # number of pictures that were cut
    left_out: int  # number of files that are too small or not pictures
    source: str  # sha256 of the names and sizes of the files, which shows whether a folder changed


def cut_tiles(
    folders: Sequence[Path], out: Path, size: int, halve: bool, report: Callable[[str], None]
) -> TileRecord:
    """Cut the pictures of folders and their subfolders, and write the tiles to a file.

    Args:
        out: the file; replaced as a whole at the end.
        size: side of a tile in pixels.
        halve: whether pictures from lossy files are halved first.
        report: called with lines about progress.

    Raises:
        BadParameter: no picture is large enough for a tile.
        OSError: a folder or file cannot be read.
    """
    files = _files(folders)
    pictures = tiles = 0
    with whole_file(out) as file:
        file.write(bytes(HEADER_BYTES))
        for done, cuts in enumerate(_cut_all(files, size, halve), 1):
            file.write(cuts.tobytes())
            pictures, tiles = pictures + bool(len(cuts)), tiles + len(cuts)
            if done % 200 == 0:
                report(f"cut {done} of {len(files)} files into {tiles} tiles")
        if not tiles:
            where = ", ".join(map(str, folders))
            raise BadParameter(
                f"{where}: no picture is at least {size}x{size} pixels"
                + (" (after lossy pictures are halved)" if halve else "")
            )
        record = TileRecord(size, halve, pictures, len(files) - pictures, _digest(files))
        file.seek(0)
        file.write(_header(record, tiles))
    return record


def read_tiles(path: Path) -> tuple[TileRecord, Tensor]:
    """Return the record and the tiles of a file, [N, S, S, 3] uint8, mapped into memory.

    Raises:
        BadParameter: the file cannot be read or is of another kind.
    """
    try:
        with safe_open(path, "pt") as file:
            record = TileRecord(**json.loads((file.metadata() or {})["cut"]))
            return record, file.get_tensor("tiles")
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise BadParameter(f"{path} is not a file of tiles made by rankpress train") from error


def is_current(record: TileRecord, folders: Sequence[Path], size: int, halve: bool) -> bool:
    """Whether cutting the folders again would give the same tiles."""
    same_settings = (record.size, record.halved) == (size, halve)
    return same_settings and record.source == _digest(_files(folders))


def cut_picture(rgb: U8, size: int) -> U8:
    """Cut a picture [H, W, 3] into tiles [n, size, size, 3]; none if a side is smaller."""
    tops, lefts = _starts(rgb.shape[0], size), _starts(rgb.shape[1], size)
    tiles = [rgb[top : top + size, left : left + size] for top in tops for left in lefts]
    return np.stack(tiles) if tiles else np.zeros((0, size, size, 3), np.uint8)


def is_lossy(data: bytes) -> bool:
    """Whether a file is lossy: JPEG, AVIF, and WebP except its lossless kind.

    AVIF can be lossless, which only a decoder can tell; it counts as lossy.
    """
    kind = recognise(data).name
    return kind in ("JPEG", "AVIF") or (kind == "WebP" and not _has_chunk(data, b"VP8L"))


def _has_chunk(data: bytes, name: bytes) -> bool:
    """Whether a RIFF file has a chunk of a name."""
    place = 12
    while place + 8 <= len(data):
        if data[place : place + 4] == name:
            return True
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        place += 8 + size + size % 2
    return False


def _starts(length: int, size: int) -> list[int]:
    """Evenly spaced starts of the fewest tiles that cover a side."""
    if length < size:
        return []
    count = -(-length // size)
    return [round(i * (length - size) / max(1, count - 1)) for i in range(count)]


def _cut_all(files: Sequence[Path], size: int, halve: bool) -> Iterator[U8]:
    """Yield the tiles of each file in order; files are read ahead on all cores."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(files), 4 * workers):
            batch = files[start : start + 4 * workers]
            yield from pool.map(lambda path: _tiles_of(path, size, halve), batch)


def _tiles_of(path: Path, size: int, halve: bool) -> U8:
    data = path.read_bytes()
    try:
        lossy = is_lossy(data)
        rgb = read_image(data, max_pixels=MAX_PIXELS, metadata="none").on_white().rgb
    except BadImage:
        return np.zeros((0, size, size, 3), np.uint8)
    if halve and lossy:
        image = Image.fromarray(rgb)
        half = (image.width // 2, image.height // 2)
        if min(half) < size:
            return np.zeros((0, size, size, 3), np.uint8)
        rgb = np.asarray(image.resize(half, Image.Resampling.BOX, reducing_gap=None))
    return cut_picture(rgb, size)


def _files(folders: Sequence[Path]) -> list[Path]:
    return [path for folder in folders for path in files_in(folder)]


def _digest(files: Sequence[Path]) -> str:
    lines = [f"{path.name} {path.stat().st_size}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _header(record: TileRecord, tiles: int) -> bytes:
    """The safetensors header of the tiles, padded with spaces as the format allows."""
    shape = [tiles, record.size, record.size, 3]
    entry = {"dtype": "U8", "shape": shape, "data_offsets": [0, int(np.prod(shape))]}
    metadata = {"cut": json.dumps(asdict(record))}
    text = json.dumps({"__metadata__": metadata, "tiles": entry}).encode()
    length = HEADER_BYTES - 8
    return length.to_bytes(8, "little") + text.ljust(length)
