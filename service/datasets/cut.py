"""A folder of pictures -> one file of uint8 tiles, cut once.

Pictures from lossy files are halved in size first, which takes their artefacts away. Each picture
is covered by square tiles on an even grid, overlapping where its sides are no multiples; smaller
pictures are left out and counted. The file is safetensors with one tensor, "tiles" [N, S, S, 3],
that training maps into memory or loads to the GPU whole.
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
"""Room kept for the safetensors header, whose numbers are known only at the end."""


@dataclass(frozen=True)
class Cut:
    """How a file of tiles was made.

    Attributes:
        size: side of a tile in pixels. halved: whether lossy sources were.
        pictures: that tiles came from. left_out: files that are no pictures, or too small.
        source: sha256 over names and sizes of the files, to see whether a folder has changed.
    """

    size: int
    halved: bool
    pictures: int
    left_out: int
    source: str


Say = Callable[[str], None]


def cut(folders: Sequence[Path], out: Path, size: int, halve: bool, say: Say) -> Cut:
    """Cut every picture of some folders, subfolders too, and write the tiles.

    Args:
        folders: of pictures. out: the file; replaced as a whole at the end.
        size: side of a tile. halve: whether lossy sources are halved first.
        say: is told how far it is.

    Raises:
        BadParameter: not one tile came of it. OSError: a folder or file cannot be read.
    """
    files = _files(folders)
    pictures = tiles = 0
    with whole_file(out) as file:
        file.write(bytes(HEADER_BYTES))
        for done, cuts in enumerate(_cut_all(files, size, halve), 1):
            file.write(cuts.tobytes())
            pictures, tiles = pictures + bool(len(cuts)), tiles + len(cuts)
            if done % 200 == 0:
                say(f"cut {done} of {len(files)} files into {tiles} tiles")
        if not tiles:
            where = ", ".join(map(str, folders))
            raise BadParameter(
                f"{where}: no picture of at least {size}x{size} pixels, halved ones so"
            )
        made = Cut(size, halve, pictures, len(files) - pictures, _digest(files))
        file.seek(0)
        file.write(_header(made, tiles))
    return made


def read_tiles(path: Path) -> tuple[Cut, Tensor]:
    """How a file of tiles was cut, and the tiles [N, S, S, 3] uint8, mapped from the file.

    Raises:
        BadParameter: no such file, or another kind of file.
    """
    try:
        with safe_open(path, "pt") as file:
            told = json.loads((file.metadata() or {})["cut"])
            return Cut(**told), file.get_tensor("tiles")
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise BadParameter(f"{path} is not a file of tiles made by rankpress train") from error


def unchanged(made: Cut, folders: Sequence[Path], size: int, halve: bool) -> bool:
    """Whether cutting again would give the same tiles."""
    same = (made.size, made.halved) == (size, halve)
    return same and made.source == _digest(_files(folders))


def cut_picture(rgb: U8, size: int) -> U8:
    """Tiles [n, size, size, 3] that cover a picture [H, W, 3]; none if a side is smaller."""
    tops, lefts = _starts(rgb.shape[0], size), _starts(rgb.shape[1], size)
    tiles = [rgb[top : top + size, left : left + size] for top in tops for left in lefts]
    return np.stack(tiles) if tiles else np.zeros((0, size, size, 3), np.uint8)


def is_lossy(data: bytes) -> bool:
    """Whether a file's pixels were coded with loss: JPEG, AVIF, and WebP but for its lossless kind.

    AVIF can be lossless, which only a decoder could tell; it is taken as lossy.
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
    """Evenly spread starts of the fewest tiles that cover a side."""
    if length < size:
        return []
    count = -(-length // size)
    return [round(i * (length - size) / max(1, count - 1)) for i in range(count)]


def _cut_all(files: Sequence[Path], size: int, halve: bool) -> Iterator[U8]:
    """The tiles of every file, in order; files are read on all cores, a few ahead."""
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
    told = [f"{path.name} {path.stat().st_size}" for path in files]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def _header(made: Cut, tiles: int) -> bytes:
    """The safetensors header for tiles that follow it, padded with spaces as the format allows."""
    shape = [tiles, made.size, made.size, 3]
    entry = {"dtype": "U8", "shape": shape, "data_offsets": [0, int(np.prod(shape))]}
    text = json.dumps({"__metadata__": {"cut": json.dumps(asdict(made))}, "tiles": entry}).encode()
    room = HEADER_BYTES - 8
    return room.to_bytes(8, "little") + text.ljust(room)
