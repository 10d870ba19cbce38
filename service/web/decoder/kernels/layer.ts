/**
 * Layers in memory, as TypeScript (src/layers.ts) writes them.
 *
 * A layer is LAYER bytes: the addresses of its weights, biases and row scales, then its numbers of
 * inputs K and outputs N, both multiples of 8 (what a network has fewer is filled up with zeros).
 * A block is five layers: pw1, dw, pw2, f1 and f2.
 */

/** Bytes from one layer of a block to the next. */
export const LAYER: usize = 32;

@inline
export function weightsOf(layer: usize): usize {
  return load<u32>(layer);
}

@inline
export function biasesOf(layer: usize): usize {
  return load<u32>(layer, 4);
}

@inline
export function scalesOf(layer: usize): usize {
  return load<u32>(layer, 8);
}

@inline
export function inputsOf(layer: usize): usize {
  return load<u32>(layer, 12);
}

@inline
export function outputsOf(layer: usize): usize {
  return load<u32>(layer, 16);
}

/** What a linear layer does with its sums. */
export const PLAIN: i32 = 0;
/** LeakyReLU of slope 1/8. */
export const LEAKY: i32 = 1;
/** Adds to what the output holds. */
export const RESIDUAL: i32 = 2;
