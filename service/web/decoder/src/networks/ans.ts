/** The entropy decoder: tables of probabilities, and pieces of coded symbols. */

import { BadStream, StoreError } from "../errors.js";
import { type Tensors, integers } from "../weights/tensors.js";
import type { Arena } from "./heap.js";
import type { Wasm } from "./wasm.js";

const LEVELS = 64;
const HALF = 512;

/** Bits of precision of the probabilities. */
const TOTAL_BITS = 24;

/** Symbols from -511 to 511. */
const SYMBOL_MAX = 511;

/** The tables of a model, in the memory of an arena. */
export class Tables {
  readonly address: number;
  private readonly mass: Int32Array;
  private codeLengths: Float32Array | null = null;

  /** Raises StoreError where the tensor `entropy.tables` is no table of probabilities. */
  constructor(wasm: Wasm, arena: Arena, tensors: Tensors) {
    this.mass = integers(tensors, "entropy.tables", [LEVELS, HALF]);
    this.address = arena.allocate(wasm.kernels.tablesBytes());
    const sound = wasm.scratch((scratch) =>
      wasm.kernels.buildTables(scratch.put(this.mass), this.address),
    );
    if (sound === 0) throw new StoreError("tables have a mass below 1 or do not sum to 2^24");
  }

  /** Ideal code length of symbols in bits: entry 1023 · level + symbol + 511; 0 at level 0. */
  costs(): Float32Array {
    const width = 2 * SYMBOL_MAX + 1;
    this.codeLengths ??= Float32Array.from({ length: LEVELS * width }, (_, i) => {
      const level = Math.floor(i / width);
      const mass = this.mass[level * HALF + Math.abs((i % width) - SYMBOL_MAX)] ?? 1;
      return level === 0 ? 0 : TOTAL_BITS - Math.log2(mass);
    });
    return this.codeLengths;
  }
}

/** Levels of the symbols of a group in memory: channels from…to of [count, stride] int16. */
export interface Group {
  levels: number;
  count: number;
  stride: number;
  from: number;
  to: number;
}

/** Decoder of one piece. */
export class PieceDecoder {
  private readonly address: number;

  /** Raises BadStream where the bytes end in a zero, as no encoder ends. */
  constructor(
    private readonly wasm: Wasm,
    arena: Arena,
    private readonly tables: Tables,
    piece: Uint8Array,
  ) {
    if (piece.at(-1) === 0) throw new BadStream("coded symbols end in a zero byte");
    const words = Math.ceil(piece.length / 4);
    const data = arena.zeros(4 * words);
    wasm.u8(data, piece.length).set(piece);
    this.address = arena.allocate(16);
    wasm.kernels.start(this.address, data, words);
  }

  /** Decode a group into `symbols`, int16 in the order of the levels; level 0 leaves them alone. */
  pull(group: Group, symbols: number, order: number): void {
    const { levels, count, stride, from, to } = group;
    this.wasm.kernels.pull(
      this.address,
      this.tables.address,
      levels,
      count,
      stride,
      from,
      to,
      symbols,
      order,
    );
  }

  /** Decode `count` symbols of one level. */
  symbols(count: number, level: number): Int16Array {
    return this.wasm.scratch((arena) => {
      const levels = arena.put(new Int16Array(count).fill(level));
      const symbols = arena.zeros(2 * count);
      const group = { levels, count, stride: 1, from: 0, to: 1 };
      this.pull(group, symbols, arena.allocate(4 * count));
      return this.wasm.i16(symbols, count).slice();
    });
  }

  /** Raise BadStream unless the piece ends where its symbols do. */
  finish(): void {
    if (this.wasm.kernels.ended(this.address) === 0) {
      throw new BadStream("coded bytes do not end where their symbols do");
    }
  }
}
