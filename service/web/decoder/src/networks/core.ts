/** Everything from merged weights to y_hat and samples; no DOM, and nothing is fetched. */

import type { LayerUpdates } from "../weights/lowrank.js";
import { mergeFloats } from "../weights/merge.js";
import { MergedModel, type ModelWeights, type Share, sharesOf } from "../weights/merged-model.js";
import type { Sizes } from "../weights/sizes.js";
import type { Tensors } from "../weights/tensors.js";
import { synthesisShapes } from "../weights/transforms.js";
import { readUpdate } from "../weights/update.js";
import { Tables } from "./ans.js";
import type { DecodedTile, EntropyNetworks } from "./entropy.js";
import type { Arena } from "./heap.js";
import { Previews } from "./previews.js";
import { type FloatLayers, Synthesis } from "./synthesis.js";
import { Wasm } from "./wasm.js";

export type { DecodedTile } from "./entropy.js";
export type { ModelWeights, Share } from "../weights/merged-model.js";
export type { Previews } from "./previews.js";
export type { Extent, Shapes, Sizes } from "../weights/sizes.js";
export type { Synthesis } from "./synthesis.js";
export type { Box, Scale } from "../stream/tiles.js";

/** An instance of the kernels with its own memory. */
export class Core {
  private constructor(private readonly wasm: Wasm) {}

  /** Make an instance of kernels.wasm. */
  static create(module: WebAssembly.Module): Core {
    return new Core(new Wasm(module));
  }

  /** Merge a rate. Raises StoreError where the tensors do not fit the sizes or one another. */
  merge(model: ModelWeights, mix: readonly Share[]): Rate {
    const arena = this.wasm.arena();
    try {
      return new Rate(this.wasm, arena, new MergedModel(this.wasm, model, mix));
    } catch (error) {
      arena.free();
      throw error;
    }
  }

  /** Make a preview network ready. Raises StoreError. */
  previews(tensors: Tensors, sizes: Sizes): Previews {
    return new Previews(this.wasm, tensors, sizes);
  }
}

/** A model merged for a rate. */
export class Rate {
  private readonly networks: EntropyNetworks;
  private readonly tables: Tables;
  private readonly transforms: FloatLayers;
  private readonly sizes: Sizes;

  /** Use `Core.merge`. */
  constructor(
    private readonly wasm: Wasm,
    private readonly arena: Arena,
    merged: MergedModel,
  ) {
    this.sizes = merged.model.sizes;
    this.tables = new Tables(wasm, arena, merged.model.tensors);
    this.networks = merged.entropy(arena, this.tables);
    this.transforms = merged.transforms();
  }

  /**
   * Decode a tile of height × width latents.
   *
   * `pieces` are 1 or 6; of a partial stream the last ones may be missing. `marked`, [h, w], is not
   * 0 where the graphics layer has the block. Raises BadStream.
   */
  decodeTile(
    pieces: readonly Uint8Array[],
    height: number,
    width: number,
    marked: Uint8Array | null,
    partial: boolean,
    countBits: boolean,
  ): DecodedTile {
    return this.networks.decode(pieces, { height, width }, marked, partial, countBits);
  }

  /** g_s with updates added: payloads of section 6, or ready updates. Raises BadStream. */
  synthesis(updates: readonly Uint8Array[]): Synthesis {
    const shapes = synthesisShapes(this.sizes);
    const read = updates.map((data) => readUpdate(this.wasm, this.tables, shapes, data));
    return new Synthesis(this.wasm, this.sizes, updated(this.wasm, this.transforms, read));
  }

  /** Give its memory back; what `synthesis` returned stays. */
  free(): void {
    this.arena.free();
  }
}

/** Layers of g_s with updates merged in, all in units of the layers without them. */
function updated(wasm: Wasm, layers: FloatLayers, updates: LayerUpdates[]): FloatLayers {
  const shares = updates.map((update) => ({ layers: update, sixteenths: 16 }));
  return new Map(
    [...layers].map(([name, layer]) => [name, mergeFloats(wasm, layer, sharesOf(shares, name))]),
  );
}
