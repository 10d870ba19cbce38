/** The functions of kernels.wasm, which `decoder/kernels` documents, and its memory. */

import { Arena, Heap } from "./heap.js";

type Numbers = (...numbers: number[]) => number;
type Action = (...numbers: number[]) => void;

export interface Kernels {
  memory: WebAssembly.Memory;
  heapBase: Numbers;
  tablesBytes: Numbers;
  buildTables: Numbers;
  start: Action;
  pull: Action;
  ended: Numbers;
  linear: Action;
  block: Action;
  reconstruct: Action;
  dequantise: Action;
  interleave: Action;
  linearFloat: Action;
  blockFloat: Action;
  toReal: Action;
  samples: Action;
  addProduct(
    delta: number,
    n: number,
    k: number,
    b: number,
    a: number,
    exponents: number,
    rank: number,
    sixteenths: bigint,
  ): void;
  addRounded: Action;
  addScaled: Action;
  largestSum: Numbers;
  packIntegers: Action;
  roundWeights: Action;
  units: Action;
  widen: Action;
}

/** What a linear layer does with its sums; see kernels/layer.ts. */
export const PLAIN = 0;
export const LEAKY = 1;
export const RESIDUAL = 2;

/** An instance of the module. */
export class Wasm {
  readonly kernels: Kernels;
  private readonly heap: Heap;

  constructor(module: WebAssembly.Module) {
    this.kernels = new WebAssembly.Instance(module, {}).exports as unknown as Kernels;
    this.heap = new Heap(this.kernels.memory, this.kernels.heapBase());
  }

  /** Memory of one owner. */
  arena(): Arena {
    return new Arena(this.heap);
  }

  /** Run with memory that is freed afterwards. */
  scratch<T>(run: (arena: Arena) => T): T {
    const arena = this.arena();
    try {
      return run(arena);
    } finally {
      arena.free();
    }
  }

  u8(address: number, count: number): Uint8Array<ArrayBuffer> {
    return new Uint8Array(this.buffer, address, count);
  }

  i16(address: number, count: number): Int16Array<ArrayBuffer> {
    return new Int16Array(this.buffer, address, count);
  }

  i32(address: number, count: number): Int32Array<ArrayBuffer> {
    return new Int32Array(this.buffer, address, count);
  }

  f32(address: number, count: number): Float32Array<ArrayBuffer> {
    return new Float32Array(this.buffer, address, count);
  }

  private get buffer(): ArrayBuffer {
    return this.kernels.memory.buffer as ArrayBuffer;
  }
}
