/** Small pictures of latents by the preview network, without g_s. */

import { StoreError } from "../errors.js";
import { type Box, PATCH, SCALES, type Scale, grownIn } from "../stream/tiles.js";
import type { FloatLayer } from "../weights/merge.js";
import { type Extent, type Sizes, padded } from "../weights/sizes.js";
import type { Tensors } from "../weights/tensors.js";
import { blockShape, floatLayer } from "../weights/transforms.js";
import type { Arena } from "./heap.js";
import { FloatPacker, firstPlaces } from "./layers.js";
import { runBlock, samples } from "./synthesis.js";
import { PLAIN, type Wasm } from "./wasm.js";

const MAX_CHANNELS = 512;
const MAX_BLOCKS = 4;

/** The preview network of a model. */
export class Previews {
  /** Latents around a window that it needs. */
  readonly halo: number;
  private readonly arena: Arena;
  private readonly channels: number;
  private readonly enter: number;
  private readonly blocks: number[];
  private readonly heads: ReadonlyMap<Scale, number>;

  /** Raises StoreError where the tensors are not those of such a network. */
  constructor(
    private readonly wasm: Wasm,
    tensors: Tensors,
    private readonly sizes: Sizes,
  ) {
    const C = tensors.get("trunk.0.weight")?.shape[0] ?? 0;
    this.halo = [...tensors.keys()].filter((name) =>
      /^trunk\.[0-9]+\.dw\.weight$/.test(name),
    ).length;
    if (C < 1 || C > MAX_CHANNELS || this.halo > MAX_BLOCKS) {
      throw new StoreError(`the preview network has ${C} channels and ${this.halo} blocks`);
    }
    const layer = (name: string, shape: number[]): FloatLayer =>
      floatLayer(wasm, tensors, name, shape);
    this.channels = C;
    this.arena = wasm.arena();
    try {
      const packer = new FloatPacker(wasm, this.arena);
      this.enter = packer.linear(
        layer("trunk.0", [C, sizes.M]),
        firstPlaces(C),
        firstPlaces(sizes.M),
      );
      this.blocks = Array.from({ length: this.halo }, (_, i) =>
        packer.block((part) => layer(`trunk.${1 + i}.${part}`, blockShape(part, C)), C),
      );
      this.heads = new Map(
        SCALES.map((scale) => {
          const n = 3 * (PATCH / scale) ** 2;
          return [
            scale,
            packer.linear(layer(`head.${scale}.l`, [n, C]), firstPlaces(n), firstPlaces(C)),
          ];
        }),
      );
    } catch (error) {
      this.arena.free();
      throw error;
    }
  }

  /** The pixels of a part of a window at 1/scale: RGB, [16/scale · height, 16/scale · width, 3]. */
  paint(yHat: Int16Array, window: Extent, inner: Box, scale: Scale): Uint8Array<ArrayBuffer> {
    const { kernels } = this.wasm;
    const { M } = this.sizes;
    const { height, width } = window;
    const stride = 4 * padded(this.channels);
    return this.wasm.scratch((arena) => {
      const at = arena.allocate(height * width * stride);
      const latents = arena.put(yHat);
      const real = arena.allocate(4 * width * padded(M));
      for (let row = 0; row < height; row++) {
        kernels.toReal(latents + 2 * row * width * M, width, M, 0, M, real, 4 * padded(M));
        const to = at + row * width * stride;
        kernels.linearFloat(this.enter, real, 4 * padded(M), width, to, stride, PLAIN);
      }
      const features = { at, stride, extent: window };
      const scratch = arena.allocate(6 * width * stride);
      this.blocks.forEach((layers, i) => {
        runBlock(this.wasm, layers, features, grownIn(inner, this.halo - 1 - i, window), scratch);
      });
      const head = this.heads.get(scale) as number;
      return samples(this.wasm, head, features, inner, PATCH / scale);
    });
  }

  /** Give its memory back. */
  free(): void {
    this.arena.free();
  }
}
