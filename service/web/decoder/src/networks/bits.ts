/** Counting of the bits that each latent of a tile takes. */

import type { TileMemory } from "./tile-memory.js";
import type { Wasm } from "./wasm.js";

const SYMBOLS = 1023;
const SYMBOL_MAX = 511;

/** Adds up ideal code lengths, group by group, while a tile is decoded. */
export class BitCounter {
  /** [h, w]; those of a hyper-latent are spread evenly over its latents that are coded. */
  readonly bits: Float32Array<ArrayBuffer>;

  /** `costs` are those of `Tables.costs`. */
  constructor(
    private readonly wasm: Wasm,
    private readonly costs: Float32Array,
    private readonly tile: TileMemory,
  ) {
    this.bits = new Float32Array(tile.extent.height * tile.extent.width);
  }

  /** Add the symbols of a step of y, so many at each position. */
  addStep(channels: number): void {
    const { tile, bits } = this;
    const sums = this.sums(channels);
    for (const { row, column, count, start } of tile.lines) {
      for (let i = 0; i < count; i++) {
        const at = row * tile.extent.width + column + 2 * i;
        bits[at] = (bits[at] ?? 0) + (sums[start + i] ?? 0);
      }
    }
  }

  /** Add the symbols of z, so many for each hyper-latent. */
  addHyper(channels: number): void {
    const { tile, bits } = this;
    const { rows, columns } = tile.hyper;
    this.sums(channels).subarray(0, rows * columns).forEach((sum, cell) => {
      const places = tile.codedLatents(Math.floor(cell / columns), cell % columns);
      for (const at of places) bits[at] = (bits[at] ?? 0) + sum / places.length;
    });
  }

  /** Bits of the symbols at each place of the group that was decoded last. */
  private sums(used: number): Float32Array {
    const { count, channels } = this.tile;
    const levels = this.wasm.i16(this.tile.levels, count * channels);
    const symbols = this.wasm.i16(this.tile.symbols, count * channels);
    return Float32Array.from({ length: count }, (_, i) => {
      let sum = 0;
      for (let at = i * channels; at < i * channels + used; at++) {
        const symbol = (symbols[at] ?? 0) + SYMBOL_MAX;
        sum += this.costs[(levels[at] ?? 0) * SYMBOLS + symbol] ?? 0;
      }
      return sum;
    });
  }
}
