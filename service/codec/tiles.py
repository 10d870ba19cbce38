"""Tiles of latents for coding, and windows with a halo for the transforms.

Tiles cut the code, not the picture. Each block of TILE×TILE latents is coded on its own, so memory
is bounded and a region decodes alone. The analysis g_a runs on a tile and the synthesis g_s on a
window, each grown by a halo at least as wide as its receptive field, so inside they give the result
of the whole picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

TILE = 64
"""Latents along a tile's side: 1024 pixels."""

SEGMENTS = ("z", "step 0a", "step 0b", "step 1", "step 2", "step 3")
"""What is coded of each tile, in the order of decoding: the hyper-latents and the four steps of the
latents, the first of them in two parts (latents.py)."""

ONE_PIECE = 1024
"""Most latents of a tile that is coded in one piece, all segments together. Others have a piece for
each segment, which takes some 20 bytes more: 20 % of a small icon, 0.1 % of 512x512 pixels at rate
4, which few prefixes would show sooner: they arrive with the first packets."""

Pieces = tuple[bytes, ...]
"""The coded latents of a tile, in one piece or in one for each of SEGMENTS. The last ones may be
cut off."""

PATCH = 16
"""Pixels along the side of one latent."""

SCALES = (2, 4, 8)
"""A preview at scale s has 1/s of the picture's width and height."""

Z_CELL = 4
"""Latents along the side of one hyper-latent."""

TILE_PIXELS = 2**14
"""Fixed cost of a tile, in pixels: running its networks takes as long as so many pixels more."""


@dataclass(frozen=True)
class Box:
    """A half-open rectangle of latents (or pixels): rows top..bottom, columns left..right."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        """Rows."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Columns."""
        return self.right - self.left

    @property
    def area(self) -> int:
        """Rows times columns."""
        return self.height * self.width

    @property
    def empty(self) -> bool:
        """Whether the box has no area."""
        return self.height <= 0 or self.width <= 0

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index into an array whose first two axes are rows and columns."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def grown(self, by: int, within: Box) -> Box:
        """The box with a halo of `by` on each side, cut at the edges of `within`."""
        return Box(self.top - by, self.left - by, self.bottom + by, self.right + by).cut(within)

    def cut(self, within: Box) -> Box:
        """The intersection with another box; it has no area if they do not meet."""
        top, left = max(self.top, within.top), max(self.left, within.left)
        bottom, right = min(self.bottom, within.bottom), min(self.right, within.right)
        return Box(top, left, max(top, bottom), max(left, right))

    def cells(self, side: int) -> Box:
        """The smallest box that covers this one, in cells of side × side, such as latents."""
        return Box(
            self.top // side, self.left // side, -(-self.bottom // side), -(-self.right // side)
        )

    def scaled(self, by: int) -> Box:
        """All coordinates multiplied, such as latents by PATCH to pixels."""
        return Box(self.top * by, self.left * by, self.bottom * by, self.right * by)

    def relative(self, to: Box) -> Box:
        """The box in coordinates that begin at the corner of another."""
        return Box(
            self.top - to.top, self.left - to.left, self.bottom - to.top, self.right - to.left
        )


def visible_at_eighth(inner: Box, window: Box, blocks: int) -> Box:
    """Positions at 1/8 (two a latent) that blocks at 1/8 read to compute those in a box of latents.

    Each block reaches one position further, up to the edges of a window of latents.
    """
    return inner.scaled(2).grown(blocks, window.scaled(2))


def latent_box(width: int, height: int) -> Box:
    """The box of all latents of a picture of width × height pixels."""
    return Box(0, 0, -(-height // PATCH), -(-width // PATCH))


def latents_under(pixels: Box) -> Box:
    """The box of latents under a box of pixels."""
    return pixels.cells(PATCH)


def padded_pixels(width: int, height: int, cell: int = PATCH) -> int:
    """Pixels that the networks run over: sides are rounded up to multiples of `cell`.

    They are 16 times the pixels of a picture of 1x60,000.
    """
    return -(-width // cell) * -(-height // cell) * cell**2


def work_pixels(box: Box, need: Box, halo: int) -> int:
    """Cost of coding a picture or a region, in pixels of a large tile; limits on time count these.

    Args:
        box: all latents of the picture. need: the latents under the requested pixels.
        halo: latents around `need`, and around each tile, that are needed too.
    """
    need = need.grown(halo, box)
    windows = [tile.grown(halo, box) for tile in tiles(box) if not tile.cut(need).empty]
    return sum(window.area * PATCH**2 + TILE_PIXELS for window in windows)


def tile_count(box: Box) -> int:
    """Number of tiles of a box of latents."""
    return -(-box.height // TILE) * -(-box.width // TILE)


def piece_count(tile: Box) -> int:
    """Number of pieces that a tile is coded in."""
    return 1 if tile.area <= ONE_PIECE else len(SEGMENTS)


def tiles(box: Box) -> Iterator[Box]:
    """The tiles of a box of latents, row by row, in stored order."""
    for top in range(box.top, box.bottom, TILE):
        for left in range(box.left, box.right, TILE):
            yield Box(top, left, top + TILE, left + TILE).cut(box)


def windows(box: Box, side: int | None = None) -> Iterator[Box]:
    """Windows of a box of latents to synthesise one at a time, row by row, without their halo.

    There are as few as possible with sides of at most 5/4 `side` (by default TILE), and they have
    similar sizes: 1080 rows of pixels are 68 of latents, which tiles would cut into 64 and 4, with
    a halo each.
    """
    side = side or TILE
    for top, bottom in _parts(box.top, box.bottom, side):
        for left, right in _parts(box.left, box.right, side):
            yield Box(top, left, bottom, right)


def _parts(begin: int, end: int, side: int) -> list[tuple[int, int]]:
    """Cut a range into parts of similar length, at most 5/4 `side` each."""
    length = end - begin
    count = -(-4 * length // (5 * side))
    return list(pairwise(begin + length * i // count for i in range(count + 1))) if count else []


def hyper_shape(tile: Box) -> tuple[int, int]:
    """Rows and columns of the hyper-latents of a tile."""
    return -(-tile.height // Z_CELL), -(-tile.width // Z_CELL)
