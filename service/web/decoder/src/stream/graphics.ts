/**
 * The graphics layer: blocks of a picture that are stored exactly, over the decoded picture.
 *
 * The layer marks blocks of 16×16 pixels, one for each latent, and holds their pixels in lossless
 * pieces (lossless.ts). Latents under marked blocks are not coded.
 */

import { BadStream } from "../errors.js";
import { lanczos } from "../picture/resample.js";
import { ByteReader, splitPieces } from "./bytes.js";
import { inflate } from "./inflate.js";
import { cells, heightOf, latentBox, losslessPieces, PATCH, widthOf, type Box } from "./tiles.js";

const MAP = "map of the graphics layer";

/** Which blocks of a picture are marked: 1 for each of those, row by row. */
export interface Mask {
  readonly columns: number;
  readonly marked: Uint8Array<ArrayBuffer>;
}

/** A layer over a picture. */
export interface GraphicsLayer {
  mask: Mask;
  /** Share of the blocks that are marked, 0 to 1. */
  share: number;
  isComplete: boolean;
  /** Whether the pieces hold the alpha plane; then every block is marked. */
  hasAlpha: boolean;
  /** Coded pixels of each piece, row by row; empty where no block of it is marked. */
  pieces: Uint8Array[];
}

/**
 * Reads the layer of a picture of width × height pixels without decoding its pieces.
 *
 * Raises BadStream where the bytes are no layer of a picture of that size.
 */
export function readLayer(data: Uint8Array, width: number, height: number): GraphicsLayer {
  const reader = new ByteReader(data);
  const flags = reader.byte("flags of the graphics layer");
  if (![0, 1, 3].includes(flags)) {
    throw new BadStream(`flags of the graphics layer are ${flags}, expected 0, 1 or 3`);
  }
  const { bottom: rows, right: columns } = latentBox(width, height);
  const marked =
    flags === 0
      ? unpackMap(reader.take(reader.varint("map length"), MAP), rows, columns)
      : new Uint8Array(rows * columns).fill(1);
  const mask = { columns, marked };
  const places = losslessPieces(width, height);
  const pieces = splitPieces(reader, places.length, "the graphics layer");
  places.forEach((place, i) => checkPiece(mask, place, pieces[i]!));
  const share = marked.reduce((sum, one) => sum + one, 0) / marked.length;
  return { mask, share, isComplete: share === 1, hasAlpha: flags === 3, pieces };
}

/** Whether every block under a box of pixels is marked. */
export function covers(mask: Mask, pixels: Box): boolean {
  const box = cells(pixels, PATCH);
  return maskIn(mask, box).marked.every((one) => one === 1);
}

/** The marks of a box of blocks. */
export function maskIn(mask: Mask, blocks: Box): Mask {
  const columns = widthOf(blocks);
  const marked = new Uint8Array(columns * heightOf(blocks));
  for (let row = blocks.top; row < blocks.bottom; row++) {
    const start = row * mask.columns + blocks.left;
    const place = (row - blocks.top) * columns;
    marked.set(mask.marked.subarray(start, start + columns), place);
  }
  return { columns, marked };
}

/**
 * Replaces the marked pixels of part of a picture.
 *
 * @param picture RGBA samples of the pixels in `pixels`, which are changed.
 * @param samples RGBA samples of the pixels in `box`, which lies inside `pixels`.
 */
export function layOver(
  picture: Uint8ClampedArray,
  pixels: Box,
  samples: Uint8ClampedArray,
  box: Box,
  mask: Mask,
): void {
  for (let y = box.top; y < box.bottom; y++) {
    const source = (y - box.top) * widthOf(box) - box.left;
    const target = (y - pixels.top) * widthOf(pixels) - pixels.left;
    const row = Math.floor(y / PATCH) * mask.columns;
    for (let x = box.left; x < box.right;) {
      const column = Math.floor(x / PATCH);
      const end = Math.min(box.right, PATCH * (column + 1));
      if (mask.marked[row + column]) {
        picture.set(samples.subarray(4 * (source + x), 4 * (source + end)), 4 * (target + x));
      }
      x = end;
    }
  }
}

/**
 * Replaces the marked part of a smaller picture by the layer's pixels, shrunk by Lanczos.
 *
 * @param small RGBA samples of the pixels in `place`, which are changed.
 * @param place a box of the picture of 1/scale the size; it covers `box`.
 * @param samples RGBA samples of the pixels in `box` of the whole picture.
 */
export function layOverScaled(
  small: Uint8ClampedArray<ArrayBuffer>,
  place: Box,
  samples: Uint8ClampedArray,
  box: Box,
  scale: number,
  mask: Mask,
): void {
  const width = widthOf(place);
  const height = heightOf(place);
  const isMarked = (x: number, y: number): boolean => {
    const column = Math.floor(Math.min(box.right - 1, x) / PATCH);
    return (
      mask.marked[Math.floor(Math.min(box.bottom - 1, y) / PATCH) * mask.columns + column] === 1
    );
  };
  const mixed = new Uint8ClampedArray(4 * width * scale * height * scale);
  const [from, to] = [new Uint32Array(samples.buffer), new Uint32Array(mixed.buffer)];
  const under = new Uint32Array(small.buffer);
  const [top, left] = [scale * place.top, scale * place.left];
  for (let y = 0; y < height * scale; y++) {
    const row = Math.min(heightOf(box) - 1, top + y - box.top) * widthOf(box);
    for (let x = 0; x < width * scale; x++) {
      to[y * width * scale + x] = isMarked(left + x, top + y)
        ? from[row + Math.min(widthOf(box) - 1, left + x - box.left)]!
        : under[Math.floor(y / scale) * width + Math.floor(x / scale)]!;
    }
  }
  const shrunk = lanczos(mixed, width * scale, height * scale, width, height);
  const shown = new Uint32Array(shrunk.buffer);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (isMarked(left + x * scale, top + y * scale)) under[y * width + x] = shown[y * width + x]!;
    }
  }
}

function checkPiece(mask: Mask, place: Box, piece: Uint8Array): void {
  const isMarked = maskIn(mask, cells(place, PATCH)).marked.includes(1);
  if (isMarked === piece.length > 0) return;
  throw new BadStream(
    `piece of the graphics layer at ${place.left},${place.top} has ${piece.length} bytes, ` +
      "which does not agree with its map",
  );
}

/** A bit for each block, each row exclusive-or the row above. */
function unpackMap(packed: Uint8Array, rows: number, columns: number): Uint8Array<ArrayBuffer> {
  const count = rows * columns;
  const size = Math.ceil(count / 8);
  const raw = inflate(packed, MAP, size + Math.floor(size / 16) + 64, size);
  const rest = (raw[size - 1] ?? 0) & ((1 << (8 * size - count)) - 1);
  if (raw.length !== size || rest !== 0) {
    throw new BadStream(`${MAP} does not unpack to ${columns}x${rows} blocks`);
  }
  const marked = new Uint8Array(count);
  for (let i = 0; i < count; i++) {
    const bit = (raw[i >> 3]! >> (7 - (i & 7))) & 1;
    marked[i] = bit ^ (i < columns ? 0 : marked[i - columns]!);
  }
  return marked;
}
