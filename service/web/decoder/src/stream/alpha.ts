/** Alpha planes: a filter byte and the pieces of a lossless picture, whose green is the plane. */

import { BadStream } from "../errors.js";
import { ByteReader, splitPieces } from "./bytes.js";
import { losslessPieces } from "./tiles.js";

/** What the samples of an alpha plane are differences to. */
export const ALPHA_FILTERS = ["none", "left", "up"] as const;
export type AlphaFilter = (typeof ALPHA_FILTERS)[number];

/** An alpha plane whose pieces are not decoded. */
export interface AlphaPlane {
  filter: AlphaFilter;
  /** Coded pixels of each piece, row by row. */
  pieces: Uint8Array[];
}

/** Reads an alpha plane. Raises BadStream where its filter or the lengths of pieces are wrong. */
export function readAlpha(data: Uint8Array, width: number, height: number): AlphaPlane {
  const reader = new ByteReader(data);
  const kind = reader.byte("filter of the alpha plane");
  const filter = ALPHA_FILTERS[kind];
  if (filter === undefined) {
    throw new BadStream(`the filter of the alpha plane is ${kind}, expected 0 to 2`);
  }
  const count = losslessPieces(width, height).length;
  return { filter, pieces: splitPieces(reader, count, "the alpha plane") };
}

/**
 * Turns the differences in green into alpha, in place.
 *
 * @param samples RGBA samples of a whole piece, `width` pixels wide; their alpha is replaced.
 */
export function undoFilter(samples: Uint8ClampedArray, width: number, filter: AlphaFilter): void {
  const before = filter === "left" ? 4 : 4 * width;
  for (let green = 1; green < samples.length; green += 4) {
    const at = green + 2;
    const isFirst = filter === "left" ? at % (4 * width) === 3 : at < before;
    const base = filter === "none" || isFirst ? 0 : samples[at - before]!;
    samples[at] = (samples[green]! + base) & 255;
  }
}
