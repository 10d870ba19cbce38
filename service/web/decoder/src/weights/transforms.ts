/** The float layers of a file of weights, and their shapes. */

import { StoreError } from "../errors.js";
import { BLOCK_PARTS } from "../networks/layers.js";
import type { Wasm } from "../networks/wasm.js";
import type { FloatLayer } from "./merge.js";
import { type Sizes, product } from "./sizes.js";
import { type Tensor, type Tensors, shaped } from "./tensors.js";

/** Read a layer whose weight has this shape. Raises StoreError. */
export function floatLayer(
  wasm: Wasm,
  tensors: Tensors,
  name: string,
  shape: number[],
): FloatLayer {
  const [n = 0, ...rest] = shape;
  const weight = floats(wasm, name, shaped(tensors, `${name}.weight`, shape));
  const bias = floats(wasm, name, shaped(tensors, `${name}.bias`, [n]));
  return { n, k: product(rest), weight, bias };
}

function floats(wasm: Wasm, name: string, tensor: Tensor): Float32Array {
  if (tensor.dtype === "F32") return new Float32Array(new Uint8Array(tensor.data).buffer);
  if (tensor.dtype !== "F16") throw new StoreError(`layer ${name} is ${tensor.dtype}`);
  return wasm.scratch((arena) => {
    const count = product(tensor.shape);
    const out = arena.allocate(4 * count);
    wasm.kernels.widen(arena.put(tensor.data), out, count);
    return wasm.f32(out, count).slice();
  });
}

/** Weight shape of every layer of g_s. */
export function synthesisShapes(sizes: Sizes): Map<string, number[]> {
  const { M, c8, c16, nd8, nd16 } = sizes;
  const shapes = new Map<string, number[]>([["g_s.0", [c16, c16]]]);
  const addBlocks = (first: number, count: number, channels: number): void => {
    for (let i = first; i < first + count; i++) {
      for (const part of BLOCK_PARTS) shapes.set(`g_s.${i}.${part}`, blockShape(part, channels));
    }
  };
  addBlocks(1, nd16, c16);
  shapes.set(`g_s.${1 + nd16}.l`, [4 * c8, M]);
  addBlocks(2 + nd16, nd8, c8);
  shapes.set(`g_s.${2 + nd16 + nd8}.l`, [192, c8]);
  return shapes;
}

/** Shape of the weight of a part of a block. */
export function blockShape(part: string, channels: number): number[] {
  if (part === "dw") return [channels, 1, 3, 3];
  if (part === "f1") return [2 * channels, channels];
  return part === "f2" ? [channels, 2 * channels] : [channels, channels];
}
