/**
 * Rectangles of latents or pixels, tiles of latents for coding, and windows for the synthesis.
 *
 * Tiles cut the code, not the picture: the synthesis runs on windows with a halo, inside of which
 * it gives the result of the whole picture.
 */

import type { Extent } from "../weights/sizes.js";

/** Latents along a tile's side: 1024 pixels. */
export const TILE = 64;
/** What is coded of each tile, in the order of decoding. */
export const SEGMENTS = ["z", "step 0a", "step 0b", "step 1", "step 2", "step 3"] as const;
/** Most latents of a tile that is coded in one piece, all segments together. */
const ONE_PIECE = 1024;
/** Pixels along the side of one latent. */
export const PATCH = 16;
/** A preview at scale s has 1/s of the picture's width and height. */
export const SCALES = [8, 4, 2] as const;
export type Scale = (typeof SCALES)[number];
/** Pixels along the side of a piece of a lossless picture. */
const LOSSLESS_PIECE = 4096;

/** A half-open rectangle: rows top to bottom, columns left to right. */
export interface Box {
  readonly top: number;
  readonly left: number;
  readonly bottom: number;
  readonly right: number;
}

/** The box of `height` rows and `width` columns that begins at the origin. */
export function boxOf(width: number, height: number): Box {
  return { top: 0, left: 0, bottom: height, right: width };
}

export function heightOf(box: Box): number {
  return box.bottom - box.top;
}

export function widthOf(box: Box): number {
  return box.right - box.left;
}

/** Rows times columns. */
export function areaOf(box: Box): number {
  return heightOf(box) * widthOf(box);
}

/** The intersection of two boxes; it has no area if they do not meet. */
export function cut(box: Box, within: Box): Box {
  const top = Math.max(box.top, within.top);
  const left = Math.max(box.left, within.left);
  return {
    top,
    left,
    bottom: Math.max(top, Math.min(box.bottom, within.bottom)),
    right: Math.max(left, Math.min(box.right, within.right)),
  };
}

/** The box with a halo on each side, cut at the edges of `within`. */
export function grown(box: Box, by: number, within: Box): Box {
  const { top, left, bottom, right } = box;
  return cut({ top: top - by, left: left - by, bottom: bottom + by, right: right + by }, within);
}

/** The box with a halo on each side, cut at the edges of an array. */
export function grownIn(box: Box, by: number, { height, width }: Extent): Box {
  return grown(box, by, boxOf(width, height));
}

/** The smallest box that covers a box, in cells of side × side, such as latents. */
export function cells(box: Box, side: number): Box {
  return {
    top: Math.floor(box.top / side),
    left: Math.floor(box.left / side),
    bottom: Math.ceil(box.bottom / side),
    right: Math.ceil(box.right / side),
  };
}

/** The box with all coordinates multiplied, such as latents by PATCH to pixels. */
export function scaled(box: Box, by: number): Box {
  const { top, left, bottom, right } = box;
  return { top: top * by, left: left * by, bottom: bottom * by, right: right * by };
}

/** The box in coordinates that begin at the corner of another. */
export function relative(box: Box, to: Box): Box {
  return {
    top: box.top - to.top,
    left: box.left - to.left,
    bottom: box.bottom - to.top,
    right: box.right - to.left,
  };
}

/** The box of all latents of a picture. */
export function latentBox(width: number, height: number): Box {
  return cells(boxOf(width, height), PATCH);
}

/** The tiles of a box of latents, row by row, in stored order. */
export function tiles(box: Box): Box[] {
  return squares(box, TILE);
}

/** The pieces of a lossless picture, row by row; those of the last row and column are cut. */
export function losslessPieces(width: number, height: number): Box[] {
  return squares(boxOf(width, height), LOSSLESS_PIECE);
}

function squares(box: Box, side: number): Box[] {
  const out: Box[] = [];
  for (let top = box.top; top < box.bottom; top += side) {
    for (let left = box.left; left < box.right; left += side) {
      out.push(cut({ top, left, bottom: top + side, right: left + side }, box));
    }
  }
  return out;
}

/** Number of pieces that a tile is coded in. */
export function pieceCount(tile: Box): number {
  return areaOf(tile) <= ONE_PIECE ? 1 : SEGMENTS.length;
}

/**
 * Windows of a box of latents to synthesise one at a time, row by row, without their halo.
 *
 * There are as few as possible with sides of at most 5/4 `side`, and they have similar sizes.
 */
export function windows(box: Box, side: number): Box[] {
  const columns = parts(box.left, box.right, side);
  return parts(box.top, box.bottom, side).flatMap(([top, bottom]) =>
    columns.map(([left, right]) => ({ top, left, bottom, right })),
  );
}

/** Cuts a range into parts of similar length, at most 5/4 `side` each. */
function parts(begin: number, end: number, side: number): [number, number][] {
  const length = end - begin;
  const count = Math.ceil((4 * length) / (5 * side));
  const edge = (i: number) => begin + Math.floor((length * i) / count);
  return Array.from({ length: count }, (_, i) => [edge(i), edge(i + 1)]);
}

/**
 * Windows that a number of threads finish soon: of the cuts into windows of at most 5/4 `most`, the
 * one in which the busiest thread has the least to do, halos included. `whole` is the box of all
 * latents, which halos do not leave.
 */
export function balancedWindows(
  box: Box,
  halo: number,
  most: number,
  threads: number,
  whole: Box,
): Box[] {
  let best: Box[] = [];
  let least = Infinity;
  for (let side = most; side >= 8; side = Math.floor((side * 3) / 4)) {
    const cuts = windows(box, side);
    const largest = Math.max(0, ...cuts.map((inner) => areaOf(grown(inner, halo, whole))));
    const work = Math.ceil(cuts.length / threads) * largest;
    if (work < 0.95 * least) [best, least] = [cuts, work];
    if (cuts.length > 4 * threads) break;
  }
  return best;
}
