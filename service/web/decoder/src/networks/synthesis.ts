/** The synthesis g_s: y_hat -> pixels, window by window, in float32. */

import { type Box, PATCH, grownIn, scaled } from "../stream/tiles.js";
import type { FloatLayer } from "../weights/merge.js";
import { type Extent, type Sizes, padded } from "../weights/sizes.js";
import type { Arena } from "./heap.js";
import { FloatPacker, firstPlaces, joined, spacedPlaces } from "./layers.js";
import { PLAIN, type Wasm } from "./wasm.js";

/** Pixels along the side of a position at 1/8. */
const EIGHTH = 8;

/** Merged weights of g_s, by name of the layer. */
export type FloatLayers = ReadonlyMap<string, FloatLayer>;

/** g_s of one set of weights. */
export class Synthesis {
  /** Latents around a window that it needs. */
  readonly halo: number;
  private readonly arena: Arena;
  private readonly enter: number;
  private readonly deep: number[];
  private readonly up: number[];
  private readonly fine: number[];
  private readonly exit: number;

  constructor(
    private readonly wasm: Wasm,
    private readonly sizes: Sizes,
    weights: FloatLayers,
  ) {
    const { M, c8, c16, nd8, nd16 } = sizes;
    this.halo = Math.ceil(nd8 / 2) + nd16;
    this.arena = wasm.arena();
    const packer = new FloatPacker(wasm, this.arena);
    const layer = (name: string): FloatLayer => weights.get(`g_s.${name}`) as FloatLayer;
    const blocks = (first: number, count: number, channels: number): number[] =>
      Array.from({ length: count }, (_, i) =>
        packer.block((part) => layer(`${first + i}.${part}`), channels),
      );
    this.enter = packer.linear(layer("0"), firstPlaces(c16), firstPlaces(c16));
    this.deep = blocks(1, nd16, c16);
    const columns = joined(firstPlaces(c16), spacedPlaces(c16, 1, M - c16));
    this.up = [0, 1, 2, 3].map((p) =>
      packer.linear(layer(`${1 + nd16}.l`), spacedPlaces(p * c8, 1, c8), columns),
    );
    this.fine = blocks(2 + nd16, nd8, c8);
    const last = `${2 + nd16 + nd8}.l`;
    this.exit = packer.linear(layer(last), firstPlaces(3 * EIGHTH ** 2), firstPlaces(c8));
  }

  /**
   * The pixels of a part of a window of latents.
   *
   * yHat is [window.height, window.width, M] in units of 1/64; `inner` lies in the window. Returns
   * RGB, [16 · inner.height, 16 · inner.width, 3].
   */
  paint(yHat: Int16Array, window: Extent, inner: Box): Uint8Array<ArrayBuffer> {
    const { c8, nd8 } = this.sizes;
    const box = grownIn(inner, Math.ceil(nd8 / 2), window);
    return this.wasm.scratch((arena) => {
      const deep = this.deepFeatures(arena, yHat, window, box);
      const fine = this.fineFeatures(arena, deep, box);
      const visible = scaled(inner, PATCH / EIGHTH);
      const scratch = arena.allocate(6 * fine.extent.width * 4 * padded(c8));
      this.fine.forEach((layers, i) => {
        runBlock(this.wasm, layers, fine, grownIn(visible, nd8 - 1 - i, fine.extent), scratch);
      });
      return samples(this.wasm, this.exit, fine, visible, EIGHTH);
    });
  }

  /** Give its memory back. */
  free(): void {
    this.arena.free();
  }

  /** Features at 1/16, [h, w, c16 + (M - c16)], where the box is. */
  private deepFeatures(arena: Arena, yHat: Int16Array, window: Extent, box: Box): Features {
    const { kernels } = this.wasm;
    const { M, c16, nd16 } = this.sizes;
    const { height, width } = window;
    const stride = 4 * (padded(c16) + padded(M - c16));
    const at = arena.allocate(height * width * stride);
    const latents = arena.put(yHat);
    const real = arena.allocate(4 * width * padded(c16));
    const read = grownIn(box, nd16, window);
    for (let row = read.top; row < read.bottom; row++) {
      const from = latents + 2 * row * width * M;
      const to = at + row * width * stride;
      kernels.toReal(from, width, M, 0, c16, real, 4 * padded(c16));
      kernels.linearFloat(this.enter, real, 4 * padded(c16), width, to, stride, PLAIN);
      kernels.toReal(from, width, M, c16, M, to + 4 * padded(c16), stride);
    }
    const features = { at, stride, extent: window };
    const scratch = arena.allocate(6 * 4 * width * padded(c16));
    this.deep.forEach((layers, i) => {
      runBlock(this.wasm, layers, features, grownIn(box, nd16 - 1 - i, window), scratch);
    });
    return features;
  }

  /** Features at 1/8, [2h, 2w, c8], where the box of latents is. */
  private fineFeatures(arena: Arena, deep: Features, box: Box): Features {
    const { height, width } = deep.extent;
    const stride = 4 * padded(this.sizes.c8);
    const at = arena.allocate(4 * height * width * stride);
    const count = box.right - box.left;
    for (let row = box.top; row < box.bottom; row++) {
      const from = deep.at + (row * width + box.left) * deep.stride;
      this.up.forEach((layer, p) => {
        const to = at + ((2 * row + (p >> 1)) * 2 * width + 2 * box.left + (p & 1)) * stride;
        this.wasm.kernels.linearFloat(layer, from, deep.stride, count, to, 2 * stride, PLAIN);
      });
    }
    return { at, stride, extent: { height: 2 * height, width: 2 * width } };
  }
}

/** Positions of float32 channels in memory. */
export interface Features {
  at: number;
  /** Bytes from one position to the next. */
  stride: number;
  extent: Extent;
}

/** Run a block in place on a box; scratch has room for 6 rows of channels. */
export function runBlock(wasm: Wasm, layers: number, x: Features, box: Box, scratch: number): void {
  const { height, width } = x.extent;
  const { top, left, bottom, right } = box;
  wasm.kernels.blockFloat(layers, x.at, x.stride, height, width, top, left, bottom, right, scratch);
}

/** Samples of a box of positions whose `layer` gives side × side pixels each: RGB. */
export function samples(
  wasm: Wasm,
  layer: number,
  x: Features,
  box: Box,
  side: number,
): Uint8Array<ArrayBuffer> {
  const count = box.right - box.left;
  const stride = 4 * padded(3 * side ** 2);
  const pitch = 3 * side * count;
  const size = pitch * side * (box.bottom - box.top);
  return wasm.scratch((arena) => {
    const out = arena.allocate(size);
    const line = arena.allocate(count * stride);
    const scratch = arena.allocate(stride / 4);
    for (let row = box.top; row < box.bottom; row++) {
      const from = x.at + (row * x.extent.width + box.left) * x.stride;
      const to = out + (row - box.top) * side * pitch;
      wasm.kernels.linearFloat(layer, from, x.stride, count, line, stride, PLAIN);
      wasm.kernels.samples(line, stride, count, side, to, pitch, scratch);
    }
    return wasm.u8(out, size).slice();
  });
}
