/** A model at a rate: a base with the mix of adapters that make the rate merged in. */

import { StoreError } from "../errors.js";
import type { Tables } from "../networks/ans.js";
import { EntropyNetworks } from "../networks/entropy.js";
import type { Arena } from "../networks/heap.js";
import { BLOCK_PARTS } from "../networks/layers.js";
import type { FloatLayers } from "../networks/synthesis.js";
import type { Wasm } from "../networks/wasm.js";
import {
  type Adapter,
  type LayerUpdates,
  type RateVectors,
  rateVectors,
  readAdapter,
} from "./lowrank.js";
import {
  type IntegerLayer,
  type LayerShare,
  checkBound,
  mergeFloats,
  mergeIntegers,
} from "./merge.js";
import type { Shapes, Sizes } from "./sizes.js";
import { type Tensors, integers, limitedIntegers } from "./tensors.js";
import { floatLayer, synthesisShapes } from "./transforms.js";

/** The weights of a model without its rates. */
export interface ModelWeights {
  sizes: Sizes;
  /** Weight shape of every layer of the base, g_a and h_a too: adapters are packed over all. */
  shapes: Shapes;
  /** g_s.* and entropy.* */
  tensors: Tensors;
}

/** A whole rate and its weight in a mix; the weights of a mix sum to 16. */
export interface Share {
  /** null for the base's own rate. */
  adapter: Tensors | null;
  sixteenths: number;
}

/** The updates of one layer in a mix. */
export function sharesOf(
  mix: { layers: LayerUpdates; sixteenths: number }[],
  name: string,
): LayerShare[] {
  return mix.flatMap(({ layers, sixteenths }) => {
    const update = layers.get(name);
    return update === undefined ? [] : [{ update, sixteenths }];
  });
}

/** A base and the mix of adapters to merge into it. */
export class MergedModel {
  private readonly mix: (Adapter & { sixteenths: number })[];

  constructor(
    private readonly wasm: Wasm,
    readonly model: ModelWeights,
    mix: readonly Share[],
  ) {
    const { tensors, shapes, sizes } = model;
    const total = mix.reduce((sum, { sixteenths }) => sum + sixteenths, 0);
    if (total !== 16 || mix.some(({ sixteenths }) => sixteenths < 1)) {
      throw new StoreError(`the weights of a mix of rates sum to ${total} sixteenths`);
    }
    const own = {
      layers: new Map(),
      vectors: {
        ...rateVectors(tensors, sizes, "entropy."),
        levelOffset: new Int32Array(sizes.M),
      },
    };
    this.mix = mix.map(({ adapter, sixteenths }) => ({
      ...(adapter === null ? own : readAdapter(adapter, shapes, sizes)),
      sixteenths,
    }));
  }

  /** The merged layers of g_s. */
  transforms(): FloatLayers {
    const { wasm, model, mix } = this;
    return new Map(
      [...synthesisShapes(model.sizes)].map(([name, shape]) => {
        const layer = floatLayer(wasm, model.tensors, name, shape);
        return [name, mergeFloats(wasm, layer, sharesOf(mix, name))];
      }),
    );
  }

  /** The merged entropy networks, packed in an arena. */
  entropy(arena: Arena, tables: Tables): EntropyNetworks {
    const { wasm, model } = this;
    const { sizes } = model;
    const contextFrac = limitedIntegers(model.tensors, "entropy.context.frac", [sizes.M], -30, 30);
    return wasm.scratch((scratch) => {
      const layers = new Map(
        [...entropyShapes(sizes)].map(([name, shape]) => [
          name,
          this.integerLayer(scratch, name, shape),
        ]),
      );
      return new EntropyNetworks(wasm, arena, {
        sizes,
        layer: (name) => layers.get(name) as IntegerLayer,
        tables,
        yStep: this.mixed("yStep"),
        zStep: this.mixed("zStep"),
        zLevel: this.mixed("zLevel"),
        contextFrac,
      });
    });
  }

  /** Merge a layer of the entropy networks and prove its bound. */
  private integerLayer(arena: Arena, name: string, [n, k]: [number, number]): IntegerLayer {
    const { tensors } = this.model;
    const full = `entropy.${name}`;
    const layer = {
      n,
      k,
      weight: arena.put(integers(tensors, `${full}.weight`, [n, k])),
      bias: Float64Array.from(integers(tensors, `${full}.bias`, [n])),
      shift: limitedIntegers(tensors, `${full}.shift`, [n], 0, 30),
    };
    mergeIntegers(this.wasm, name, layer, sharesOf(this.mix, name));
    if (name.endsWith(".head")) this.addLevelOffset(layer);
    checkBound(this.wasm, name, layer);
    return layer;
  }

  /** Add the level offset to the biases of the levels of a head. */
  private addLevelOffset({ n, bias, shift }: IntegerLayer): void {
    this.weighted("levelOffset").forEach((offset, c) => {
      const row = n / 2 + c;
      bias[row] = (bias[row] ?? 0) + Math.floor((offset * 2 ** (shift[row] ?? 0)) / 4096);
    });
  }

  /** A vector of the mix, rounded. */
  private mixed(name: keyof RateVectors): Int32Array {
    return Int32Array.from(this.weighted(name), (sum) => Math.floor((sum + 8) / 16));
  }

  /** The sum of a vector of the mix, in sixteenths. */
  private weighted(name: keyof RateVectors): number[] {
    const { M, Cz } = this.model.sizes;
    const length = name === "yStep" || name === "levelOffset" ? M : Cz;
    return Array.from({ length }, (_, i) =>
      this.mix.reduce(
        (sum, { vectors, sixteenths }) => sum + sixteenths * (vectors[name][i] ?? 0),
        0,
      ),
    );
  }
}

/** Weight shape of every layer of the entropy networks. */
function entropyShapes(sizes: Sizes): Map<string, [number, number]> {
  const { M, Cz, cp, cc } = sizes;
  const shapes = new Map<string, [number, number]>();
  const addBlock = (name: string, c: number): void => {
    for (const part of BLOCK_PARTS) shapes.set(`${name}.${part}`, entropyShape(part, c));
  };
  shapes.set("h_s.0", [4 * Cz, Cz]);
  addBlock("h_s.1", Cz);
  shapes.set("h_s.2", [4 * cp, Cz]);
  addBlock("h_s.3", cp);
  shapes.set("step.0.head", [2 * M, cp]);
  for (const t of [1, 2, 3]) {
    shapes.set(`step.${t}.first`, [cc, cp + M]);
    addBlock(`step.${t}.block`, cc);
    shapes.set(`step.${t}.head`, [2 * M, cc]);
  }
  return shapes;
}

function entropyShape(part: string, c: number): [number, number] {
  if (part === "dw") return [c, 9];
  if (part === "f1") return [2 * c, c];
  return part === "f2" ? [c, 2 * c] : [c, c];
}
