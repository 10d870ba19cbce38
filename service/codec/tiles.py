"""How latents are cut for coding, and pictures into windows with halo for the transforms.

Tiles cut the code, not the picture: each TILE×TILE block of latents is coded on its own, so memory
is bounded and a region decodes alone; g_a runs on a tile, g_s on a window of its own, each
grown by a halo at least as wide as their receptive field, so what they give inside equals the
whole-picture result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

TILE = 64
"""Latents along a tile's side: 1024 pixels."""

PATCH = 16
"""Pixels along the side of one latent."""

Z_CELL = 4
"""Latents along the side of one hyper-latent."""


TILE_PIXELS = 2**14
"""A tile takes as long as so many pixels more: what its networks cost however small it is."""


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
    def slices(self) -> tuple[slice, slice]:
        """Index into an array whose first two axes are rows and columns."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def grown(self, by: int, within: Box) -> Box:
        """The box with a halo, cut off at the edges of `within`."""
        return Box(self.top - by, self.left - by, self.bottom + by, self.right + by).cut(within)

    def cut(self, within: Box) -> Box:
        """The intersection with another box (empty boxes have no area)."""
        top, left = max(self.top, within.top), max(self.left, within.left)
        return Box(
            top, left, max(top, min(self.bottom, within.bottom)),
            max(left, min(self.right, within.right)),
        )  # fmt: skip

    def scaled(self, by: int) -> Box:
        """From latents to pixels."""
        return Box(self.top * by, self.left * by, self.bottom * by, self.right * by)

    def relative(self, to: Box) -> Box:
        """The same box counted from the corner of another."""
        return Box(
            self.top - to.top, self.left - to.left, self.bottom - to.top, self.right - to.left
        )

    @property
    def empty(self) -> bool:
        """True when it has no area."""
        return self.height <= 0 or self.width <= 0


def seen_at_eighth(inner: Box, window: Box, blocks: int) -> Box:
    """What positions at 1/8 inside `inner` can see through blocks of 3×3, in the same unit.

    Args:
        inner, window: of latents, one inside the other; nothing beyond the window is there.
        blocks: how many, each sees one position further.
    """
    return inner.scaled(2).grown(blocks, window.scaled(2))


def latent_box(width: int, height: int) -> Box:
    """All latents of a picture of that many pixels."""
    return Box(0, 0, -(-height // PATCH), -(-width // PATCH))


def latents_under(pixels: Box) -> Box:
    """The latents under a box of pixels."""
    return Box(
        pixels.top // PATCH,
        pixels.left // PATCH,
        -(-pixels.bottom // PATCH),
        -(-pixels.right // PATCH),
    )


def padded_pixels(width: int, height: int, cell: int = PATCH) -> int:
    """Pixels that the networks run over: those of a picture, its sides rounded up to whole cells.

    A picture of 1x60,000 pixels has 16 times as many as it shows.
    """
    return -(-width // cell) * -(-height // cell) * cell**2


def work_pixels(box: Box, need: Box, halo: int) -> int:
    """How long coding takes, in pixels of a large tile: what limits on time and waiting count.

    Args:
        box: all latents of a picture. need: those under what is wanted. halo: latents around them
            that count too; a tile with one of either is coded whole, and its window has a halo.
    """
    need = need.grown(halo, box)
    windows = [tile.grown(halo, box) for tile in tiles(box) if not tile.cut(need).empty]
    return sum(window.area * PATCH**2 + TILE_PIXELS for window in windows)


def tile_count(box: Box) -> int:
    """Number of tiles in a grid of latents."""
    return -(-box.height // TILE) * -(-box.width // TILE)


def tiles(box: Box) -> Iterator[Box]:
    """The tiles of a grid of latents, row by row, in the order in which they are stored."""
    for top in range(box.top, box.bottom, TILE):
        for left in range(box.left, box.right, TILE):
            yield Box(top, left, top + TILE, left + TILE).cut(box)


def windows(box: Box) -> Iterator[Box]:
    """Parts of a box of latents to synthesise one at a time, row by row, without their halo.

    As few as may be of sides up to a quarter longer than a tile's, and of like sizes: 1080 rows of
    pixels are 68 of latents, which a grid of tiles would cut into 64 and 4 with a halo for each.
    """
    for top, bottom in _parts(box.top, box.bottom):
        for left, right in _parts(box.left, box.right):
            yield Box(top, left, bottom, right)


def _parts(begin: int, end: int) -> list[tuple[int, int]]:
    """A side cut into like parts, each up to 5/4 TILE long."""
    length = end - begin
    count = -(-4 * length // (5 * TILE))
    return list(pairwise(begin + length * i // count for i in range(count + 1))) if count else []


def hyper_shape(tile: Box) -> tuple[int, int]:
    """Rows and columns of a tile's hyper-latents."""
    return -(-tile.height // Z_CELL), -(-tile.width // Z_CELL)
