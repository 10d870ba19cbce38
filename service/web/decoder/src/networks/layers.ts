/** Packing of merged weights into the layers that the kernels run; see kernels/layer.ts. */

import { StoreError } from "../errors.js";
import type { FloatLayer, IntegerLayer } from "../weights/merge.js";
import { padded, powerOfTwo } from "../weights/sizes.js";
import type { Arena } from "./heap.js";
import type { Wasm } from "./wasm.js";

/** Bytes of a layer; a block is five of them. */
const LAYER_BYTES = 32;

/** The parts of a block, in the order of memory. */
export const BLOCK_PARTS = ["pw1", "dw", "pw2", "f1", "f2"] as const;

/** Weights of a depthwise layer for each channel. */
const TAPS = 9;

/** Most inputs of a layer of the synthesis; see kernels/floats.ts. */
const MAX_INPUTS = 8192;

/** A row or column of zeros. */
const NONE = -1;

/** Rows or columns of a weight, in the order in which a layer has them; NONE for zeros. */
export type Places = Int32Array<ArrayBuffer>;

/** The first `count` places, and zeros up to `size` of them. */
export function firstPlaces(count: number, size = padded(count)): Places {
  return Int32Array.from({ length: size }, (_, i) => (i < count ? i : NONE));
}

/** `count` places from `first` on, `step` apart, and zeros up to a multiple of 8. */
export function spacedPlaces(first: number, step: number, count: number): Places {
  return Int32Array.from({ length: padded(count) }, (_, i) =>
    i < count ? first + step * i : NONE,
  );
}

/** One list after another. */
export function joined(...lists: Places[]): Places {
  return Int32Array.from(lists.flatMap((list) => [...list]));
}

/** What the kernels read of a layer's rows: addresses of weights, biases and scales. */
interface Packed {
  weights: number;
  biases: number;
  scales: number;
}

/** Packs the layers of a network into memory. */
abstract class Packer<Layer extends { n: number }> {
  constructor(
    protected readonly wasm: Wasm,
    protected readonly arena: Arena,
  ) {}

  /** A linear layer of some rows and columns of a weight; returns its address. */
  linear(layer: Layer, rows: Places, columns: Places): number {
    const address = this.arena.allocate(LAYER_BYTES);
    this.write(address, this.packLinear(layer, rows, columns), columns.length, rows.length);
    return address;
  }

  /** A block of `channels` channels; returns the address of its five layers. */
  block(parts: (part: string) => Layer, channels: number): number {
    const address = this.arena.allocate(BLOCK_PARTS.length * LAYER_BYTES);
    const narrow = firstPlaces(channels);
    const wide = firstPlaces(2 * channels, 2 * padded(channels));
    BLOCK_PARTS.forEach((part, i) => {
      const at = address + i * LAYER_BYTES;
      const rows = part === "f1" ? wide : narrow;
      const columns = part === "f2" ? wide : narrow;
      const layer = parts(part);
      if (part === "dw") this.write(at, this.packDepthwise(layer, rows), TAPS, rows.length);
      else this.write(at, this.packLinear(layer, rows, columns), columns.length, rows.length);
    });
    return address;
  }

  protected abstract packLinear(layer: Layer, rows: Places, columns: Places): Packed;

  protected abstract packDepthwise(layer: Layer, rows: Places): Packed;

  /** Pack some rows and columns of [*, k] int32 in memory for a linear layer. */
  protected packProducts(weight: number, k: number, rows: Places, columns: Places): number {
    const out = this.arena.allocate(2 * rows.length * columns.length);
    this.wasm.scratch((scratch) => {
      const [r, c] = [scratch.put(rows), scratch.put(columns)];
      this.wasm.kernels.packIntegers(weight, k, r, rows.length, c, columns.length, out);
    });
    return out;
  }

  private write(address: number, packed: Packed, inputs: number, outputs: number): void {
    const { weights, biases, scales } = packed;
    this.wasm.i32(address, 5).set([weights, biases, scales, inputs, outputs]);
  }
}

/** Packs the layers of the entropy networks. */
export class IntegerPacker extends Packer<IntegerLayer> {
  protected packLinear(layer: IntegerLayer, rows: Places, columns: Places): Packed {
    const weights = this.packProducts(layer.weight, layer.k, rows, columns);
    return { weights, ...this.packRows(layer, rows) };
  }

  protected packDepthwise(layer: IntegerLayer, rows: Places): Packed {
    const packed = new Int16Array(rows.length * (TAPS + 1));
    const weight = this.wasm.i32(layer.weight, layer.n * TAPS);
    weight.forEach((value, i) => {
      const [channel, tap] = [Math.floor(i / TAPS), i % TAPS];
      const lane = channel % 8;
      packed[(channel - lane) * (TAPS + 1) + (tap >> 1) * 16 + lane * 2 + (tap % 2)] = value;
    });
    return { weights: this.arena.put(packed), ...this.packRows(layer, rows) };
  }

  private packRows({ bias, shift }: IntegerLayer, rows: Places): Omit<Packed, "weights"> {
    const biases = Int32Array.from(rows, (row) => bias[row] ?? 0);
    const scales = Float32Array.from(rows, (row) => powerOfTwo(-(shift[row] ?? 0)));
    return { biases: this.arena.put(biases), scales: this.arena.put(scales) };
  }
}

/** Packs the layers of the synthesis and of the previews. */
export class FloatPacker extends Packer<FloatLayer> {
  /** Raises StoreError where a layer has more inputs than the kernels take. */
  protected packLinear(layer: FloatLayer, rows: Places, columns: Places): Packed {
    const { n, k } = layer;
    if (columns.length > MAX_INPUTS) throw new StoreError(`a layer has ${k} inputs`);
    return this.wasm.scratch((scratch) => {
      const rounded = scratch.allocate(4 * n * k);
      const units = scratch.allocate(4 * n);
      this.wasm.kernels.roundWeights(scratch.put(layer.weight), n, k, rounded, units);
      const weights = this.packProducts(rounded, k, rows, columns);
      const unit = this.wasm.f32(units, n);
      const scales = this.arena.put(Float32Array.from(rows, (row) => unit[row] ?? 0));
      return { weights, biases: this.packBiases(layer, rows), scales };
    });
  }

  protected packDepthwise(layer: FloatLayer, rows: Places): Packed {
    const packed = new Float32Array(rows.length * TAPS);
    layer.weight.forEach((value, i) => {
      packed[(i % TAPS) * rows.length + Math.floor(i / TAPS)] = value;
    });
    return { weights: this.arena.put(packed), biases: this.packBiases(layer, rows), scales: 0 };
  }

  private packBiases({ bias }: FloatLayer, rows: Places): number {
    return this.arena.put(Float32Array.from(rows, (row) => bias[row] ?? 0));
  }
}
