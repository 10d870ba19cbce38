/** Merging of low-rank updates into the weights of a base. */

import { StoreError } from "../errors.js";
import type { Arena } from "../networks/heap.js";
import type { Wasm } from "../networks/wasm.js";
import type { LayerUpdate } from "./lowrank.js";
import { powerOfTwo } from "./sizes.js";

/** An update of a layer and its weight in a mix. */
export interface LayerShare {
  update: LayerUpdate;
  sixteenths: number;
}

/** A float layer: weight [n, k], bias [n]. */
export interface FloatLayer {
  n: number;
  k: number;
  weight: Float32Array;
  bias: Float32Array;
}

/** An integer layer whose weight, [n, k] int32, lies in memory; bias [n], not yet checked. */
export interface IntegerLayer {
  n: number;
  k: number;
  weight: number;
  bias: Float64Array;
  shift: Int32Array;
}

const MIN_BIAS_EXPONENT = -28;
const MAX_BIAS_EXPONENT = 22;

/** Sums of a layer must stay below this, so that they are exact in float32. */
const EXACT = 2 ** 24;

/** Merge shares into a float layer; returns a new one, or the same where nothing changes. */
export function mergeFloats(wasm: Wasm, layer: FloatLayer, shares: LayerShare[]): FloatLayer {
  const { n, k } = layer;
  if (shares.length === 0) return layer;
  return wasm.scratch((arena) => {
    const weight = arena.put(layer.weight);
    const rows = arena.allocate(4 * n);
    const columns = arena.allocate(4 * k);
    wasm.kernels.units(weight, n, k, rows, columns, arena.allocate(8 * k));
    const delta = weightDelta(wasm, arena, n, k, shares);
    if (delta !== null) wasm.kernels.addScaled(weight, delta, n, k, rows, columns);
    const units = wasm.f32(rows, n);
    const bias = layer.bias.map((value, i) => {
      const change = Math.fround(biasDelta(shares, i));
      return value + Math.fround((units[i] ?? 0) * change);
    });
    return { n, k, weight: wasm.f32(weight, n * k).slice(), bias };
  });
}

/** The delta of bias i of a transform. */
function biasDelta(shares: LayerShare[], i: number): number {
  let total = 0;
  for (const { update, sixteenths } of shares) {
    const scale = powerOfTwo(update.biasExponents[i] ?? 0);
    total += ((update.bias[i] ?? 0) * scale * sixteenths) / 16;
  }
  return total;
}

/** Merge shares into an integer layer, in place. Raises StoreError. */
export function mergeIntegers(
  wasm: Wasm,
  name: string,
  layer: IntegerLayer,
  shares: LayerShare[],
): void {
  const { n, k } = layer;
  wasm.scratch((arena) => {
    const delta = weightDelta(wasm, arena, n, k, shares);
    if (delta !== null) wasm.kernels.addRounded(layer.weight, delta, n * k);
  });
  for (const { update } of shares) {
    update.biasExponents.forEach((exponent, i) => {
      const sum = exponent + (layer.shift[i] ?? 0);
      if (sum < MIN_BIAS_EXPONENT || sum > MAX_BIAS_EXPONENT) {
        throw new StoreError(`layer ${name}: a bias exponent plus its shift is ${sum}`);
      }
    });
  }
  if (shares.length > 0) {
    layer.bias.forEach((value, i) => {
      layer.bias[i] = value + integerBiasDelta(shares, i, layer.shift[i] ?? 0);
    });
  }
}

/** The delta of bias i of an entropy layer, rounded. */
function integerBiasDelta(shares: LayerShare[], i: number, shift: number): number {
  let total = 1n << 31n;
  for (const { update, sixteenths } of shares) {
    const exponent = (update.biasExponents[i] ?? 0) + shift + 28;
    total += BigInt((update.bias[i] ?? 0) * sixteenths) << BigInt(exponent);
  }
  return Number(total >> 32n);
}

/** Raise StoreError where a sum of an integer layer could leave the exact range of float32. */
export function checkBound(wasm: Wasm, name: string, layer: IntegerLayer): void {
  const largest = wasm.scratch((arena) =>
    wasm.kernels.largestSum(layer.weight, arena.put(layer.bias), layer.n, layer.k),
  );
  if (largest >= EXACT) {
    throw new StoreError(`layer ${name} can reach ${largest}, beyond the exact range ${EXACT}`);
  }
}

/** The weight delta of a mix in memory, [n, k] int64 in units of 2^-32; null if there is none. */
function weightDelta(
  wasm: Wasm,
  arena: Arena,
  n: number,
  k: number,
  shares: LayerShare[],
): number | null {
  if (shares.every(({ update }) => update.exponents.length === 0)) return null;
  const delta = arena.zeros(8 * n * k);
  for (const { update, sixteenths } of shares) {
    wasm.kernels.addProduct(
      delta,
      n,
      k,
      arena.put(update.b),
      arena.put(update.a),
      arena.put(update.exponents),
      update.exponents.length,
      BigInt(sixteenths),
    );
  }
  return delta;
}
