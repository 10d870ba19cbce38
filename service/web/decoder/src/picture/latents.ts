/**
 * Latents of a picture, tile by tile as the workers decode them, and the windows that read them.
 *
 * A tile is let go as soon as the last window that reads it has been given its part, so memory
 * holds a few rows of tiles of a large picture.
 */

import type { DecodedTile } from "../networks/core.js";
import type { Resource } from "../pool/messages.js";
import type { WorkerPool } from "../pool/pool.js";
import { maskIn, type Mask } from "../stream/graphics.js";
import type { Stream } from "../stream/stream.js";
import {
  areaOf,
  cut,
  grown,
  heightOf,
  latentBox,
  relative,
  tiles,
  widthOf,
  type Box,
} from "../stream/tiles.js";

/** How to decode the latents of a stream. */
export interface LatentOptions {
  /** Key of the rate. */
  rate: string;
  /** The rate, what it needs, and what windows of the picture need. */
  resources: readonly Resource[];
  /** Whether pieces at the end may be missing. */
  partial: boolean;
  countBits: boolean;
  signal: AbortSignal;
}

/** Begins to decode a tile of a stream. */
export function decodeTile(
  pool: WorkerPool,
  stream: Stream,
  tile: Box,
  index: number,
  options: LatentOptions,
): Promise<DecodedTile> {
  const pieces = stream.tiles[index]!.map((piece) => new Uint8Array(piece));
  const mask: Mask | null = stream.graphics && maskIn(stream.graphics.mask, tile);
  const input = {
    rate: options.rate,
    pieces,
    height: heightOf(tile),
    width: widthOf(tile),
    marked: mask && mask.marked,
    partial: options.partial,
    countBits: options.countBits,
  };
  const transfer = pieces.map(({ buffer }) => buffer);
  const { resources, signal } = options;
  return pool.run("tile", input, { resources, signal, transfer });
}

/** A tile and how many windows still read it. */
interface SharedTile {
  box: Box;
  decoded: Promise<DecodedTile> | null;
  readers: number;
}

/** The latents that windows of a picture read. */
export class LatentReader {
  private readonly shared: SharedTile[];
  private readonly channels: number;
  /** The windows with their halo. */
  readonly windows: Box[];

  /**
   * Begins to decode the tiles under windows.
   *
   * @param inner windows of latents. @param halo latents around each that are read, too.
   * @param options say how many channels latents have, besides how to decode them.
   */
  constructor(
    pool: WorkerPool,
    stream: Stream,
    inner: readonly Box[],
    halo: number,
    options: LatentOptions & { channels: number },
  ) {
    const box = latentBox(stream.header.width, stream.header.height);
    this.channels = options.channels;
    this.windows = inner.map((one) => grown(one, halo, box));
    this.shared = tiles(box).flatMap((tile, index) => {
      const readers = this.windows.filter((window) => areaOf(cut(tile, window)) > 0).length;
      if (readers === 0) return [];
      const decoded = decodeTile(pool, stream, tile, index, options);
      decoded.catch(() => undefined); // the windows report it
      return [{ box: tile, decoded, readers }];
    });
  }

  /** The latents of a window with its halo, [height, width, M]; each is read once. */
  async read(window: Box): Promise<Int16Array<ArrayBuffer>> {
    const parts = this.shared.filter(({ box }) => areaOf(cut(box, window)) > 0);
    const decoded = await Promise.all(parts.map(({ decoded }) => decoded!));
    const row = widthOf(window) * this.channels;
    const out = new Int16Array(row * heightOf(window));
    parts.forEach((part, i) => {
      this.copy(decoded[i]!.yHat, part.box, out, window);
      if (--part.readers === 0) part.decoded = null;
    });
    return out;
  }

  private copy(from: Int16Array, tile: Box, to: Int16Array, window: Box): void {
    const common = cut(tile, window);
    const [source, target] = [relative(common, tile), relative(common, window)];
    const count = widthOf(common) * this.channels;
    for (let y = 0; y < heightOf(common); y++) {
      const start = ((source.top + y) * widthOf(tile) + source.left) * this.channels;
      const place = ((target.top + y) * widthOf(window) + target.left) * this.channels;
      to.set(from.subarray(start, start + count), place);
    }
  }
}
