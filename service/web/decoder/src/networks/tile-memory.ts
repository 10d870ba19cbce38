/** The working memory of a tile, and the order in which its positions are coded. */

import { type Extent, type Sizes, padded } from "../weights/sizes.js";
import type { Arena } from "./heap.js";
import type { Wasm } from "./wasm.js";

/** Steps of y, classes of positions and channel groups. */
export const STEPS = 4;

/** Classes of positions: 2 · (row mod 2) + (column mod 2). Steps and channel groups, too. */
export const CLASSES = [0, 1, 2, 3] as const;
export type Class = (typeof CLASSES)[number];

/** Latents along the side of a hyper-latent. */
export const Z_CELL = 4;

/** The positions of one class in a row of a tile. */
export interface Line {
  p: Class;
  row: number;
  /** Of the first; the others are two columns apart. */
  column: number;
  count: number;
  /** The number of positions before, in coding order. */
  start: number;
}

/** The working memory of a tile that is decoded. */
export class TileMemory {
  readonly hyper: { rows: number; columns: number };
  readonly lines: Line[];
  readonly mu: number;
  readonly levels: number;
  readonly symbols: number;
  readonly order: number;
  /** [h, w, 4, M/4], the last two padded: latents by channel group. */
  readonly latents: number;
  /** [4·rows, 4·columns]: the features P, and then what each step decoded there. */
  readonly features: number;
  readonly featureStride: number;
  readonly hidden: number;
  readonly hiddenStride: number;
  readonly scratch: number;
  /** Places and padded channels of the group of symbols that is worked on. */
  count = 0;
  channels = 0;

  constructor(
    private readonly wasm: Wasm,
    private readonly arena: Arena,
    readonly extent: Extent,
    private readonly sizes: Sizes,
    private readonly marked: Uint8Array | null,
  ) {
    const { height, width } = extent;
    const { M, Cz, cp, cc } = sizes;
    this.hyper = { rows: Math.ceil(height / Z_CELL), columns: Math.ceil(width / Z_CELL) };
    this.lines = lines(extent);
    const cells = this.hyper.rows * this.hyper.columns;
    const area = height * width;
    const quarter = padded(M / STEPS);
    const group = Math.max(area * quarter, cells * padded(Cz));
    this.mu = arena.allocate(2 * group);
    this.levels = arena.allocate(2 * group);
    this.symbols = arena.allocate(2 * group);
    this.order = arena.allocate(4 * group);
    this.latents = arena.allocate(2 * STEPS * area * quarter);
    this.featureStride = 2 * (padded(cp) + (STEPS - 1) * quarter);
    this.features = arena.allocate(Z_CELL ** 2 * cells * this.featureStride + 2 * quarter);
    this.hiddenStride = 2 * padded(cc);
    this.hidden = arena.allocate(area * this.hiddenStride);
    const widest = Math.max(padded(Cz), padded(cp), padded(cc));
    this.scratch = arena.allocate(6 * 2 * Z_CELL * this.hyper.columns * widest);
  }

  /** Begin a group of symbols, which are 0 until they are decoded. */
  useGroup(count: number, channels: number): void {
    this.count = count;
    this.channels = channels;
    this.wasm.i16(this.symbols, count * channels).fill(0);
  }

  featuresAt(row: number, column: number): number {
    return this.features + (row * Z_CELL * this.hyper.columns + column) * this.featureStride;
  }

  /** Whether a hyper-latent is coded: one of its latents is not marked. */
  isCoded(row: number, column: number): boolean {
    return this.marked === null || this.codedLatents(row, column).length > 0;
  }

  /** Places in [h, w] of the latents of a hyper-latent that are not marked. */
  codedLatents(row: number, column: number): number[] {
    const { height, width } = this.extent;
    const places: number[] = [];
    for (let r = Z_CELL * row; r < Math.min(Z_CELL * row + Z_CELL, height); r++) {
      for (let c = Z_CELL * column; c < Math.min(Z_CELL * column + Z_CELL, width); c++) {
        if (this.marked === null || this.marked[r * width + c] === 0) places.push(r * width + c);
      }
    }
    return places;
  }

  /** Set the levels of marked latents to 0. */
  skipMarked(): void {
    if (this.marked === null) return;
    const levels = this.wasm.i16(this.levels, this.count * this.channels);
    for (const { row, column, count, start } of this.lines) {
      for (let i = 0; i < count; i++) {
        if (this.marked[row * this.extent.width + column + 2 * i] !== 0) {
          levels.fill(0, (start + i) * this.channels, (start + i + 1) * this.channels);
        }
      }
    }
  }

  /** The latents in the order of their channels. */
  yHat(): Int16Array<ArrayBuffer> {
    const { M } = this.sizes;
    const area = this.extent.height * this.extent.width;
    const out = this.arena.allocate(2 * area * M);
    this.wasm.kernels.interleave(this.latents, area, padded(M / STEPS), out, M);
    return this.wasm.i16(out, area * M).slice();
  }
}

/** The lines of a tile in coding order. */
function lines({ height, width }: Extent): Line[] {
  let start = 0;
  return CLASSES.flatMap((p) => {
    const column = p & 1;
    const count = Math.ceil((width - column) / 2);
    if (count === 0) return [];
    const rows: Line[] = [];
    for (let row = p >> 1; row < height; row += 2) {
      rows.push({ p, row, column, count, start });
      start += count;
    }
    return rows;
  });
}
