/** Low-rank updates of weights, and adapters: the files that hold one for each rate. */

import { StoreError } from "../errors.js";
import { type Shapes, type Sizes, product } from "./sizes.js";
import { type Tensors, int8s, limitedIntegers } from "./tensors.js";

/** The update of a layer with N outputs and K inputs. */
export interface LayerUpdate {
  /** Factors, [N, rank]. */
  b: Int8Array;
  /** Factors, [rank, K]. */
  a: Int8Array;
  /** Exponents of the rank-1 pieces, [rank]. */
  exponents: Int8Array;
  /** Deltas of the bias, [N]. */
  bias: Int8Array;
  /** Exponents of the deltas of the bias, [N]. */
  biasExponents: Int8Array;
}

/** Updates by name of the layer; other layers do not change. */
export type LayerUpdates = ReadonlyMap<string, LayerUpdate>;

/** The vectors that belong to a rate. */
export interface RateVectors {
  yStep: Int32Array;
  zStep: Int32Array;
  zLevel: Int32Array;
  levelOffset: Int32Array;
}

export interface Adapter {
  layers: LayerUpdates;
  vectors: RateVectors;
}

const MAX_RANK = 16;
const MIN_EXPONENT = -28;
const MAX_EXPONENT = 10;
const MAX_OFFSET = 16384;

/** Largest quantiser step. */
const STEP_MAX = 2 ** 21 - 1;

/** The steps and levels of a rate, checked. Raises StoreError. */
export function rateVectors(
  tensors: Tensors,
  sizes: Sizes,
  prefix: string,
): Omit<RateVectors, "levelOffset"> {
  return {
    yStep: limitedIntegers(tensors, `${prefix}y.step`, [sizes.M], 1, STEP_MAX),
    zStep: limitedIntegers(tensors, `${prefix}z.step`, [sizes.Cz], 1, STEP_MAX),
    zLevel: limitedIntegers(tensors, `${prefix}z.level`, [sizes.Cz], 1, 63),
  };
}

/** Read an adapter of a base with these shapes. Raises StoreError. */
export function readAdapter(tensors: Tensors, shapes: Shapes, sizes: Sizes): Adapter {
  const offset = limitedIntegers(tensors, "level.offset", [sizes.M], -MAX_OFFSET, MAX_OFFSET);
  const vectors = { ...rateVectors(tensors, sizes, ""), levelOffset: offset };
  return { layers: readLayers(tensors, shapes), vectors };
}

function readLayers(tensors: Tensors, shapes: Shapes): Map<string, LayerUpdate> {
  const ranks = int8s(tensors, "ranks");
  const names = [...shapes.keys()].sort();
  if (ranks.length !== names.length) {
    throw new StoreError(`adapter has ${ranks.length} layers, the base ${names.length}`);
  }
  const cuts = Object.fromEntries(
    ["groups", "factors", "exponents", "biases", "bias_exponents"].map((name) => [
      name,
      new Cutter(name, int8s(tensors, name)),
    ]),
  ) as Record<string, Cutter>;
  const take = (name: string, count: number): Int8Array => (cuts[name] as Cutter).take(count);
  const layers = new Map<string, LayerUpdate>();
  names.forEach((name, at) => {
    const rank = ranks[at] ?? -1;
    if (rank < 0) return;
    const [n = 0, ...rest] = shapes.get(name) ?? [];
    const groups = take("groups", 1)[0] ?? 0;
    if (rank > MAX_RANK || groups < 1 || n % groups !== 0) {
      throw new StoreError(`adapter layer ${name} has rank ${rank} and ${groups} bias groups`);
    }
    const b = take("factors", n * rank);
    const a = take("factors", rank * product(rest));
    const exponents = take("exponents", rank);
    const bias = take("biases", n);
    const biasExponents = repeated(take("bias_exponents", groups), n / groups);
    layers.set(name, { b, a, exponents, bias, biasExponents });
  });
  for (const cut of Object.values(cuts)) cut.finish();
  for (const { exponents } of layers.values()) {
    if (exponents.some((e) => e < MIN_EXPONENT || e > MAX_EXPONENT)) {
      throw new StoreError(`adapter has exponents outside ${MIN_EXPONENT}..${MAX_EXPONENT}`);
    }
  }
  return layers;
}

/** Cuts a flat tensor into parts, one after another. */
class Cutter {
  private at = 0;

  constructor(
    private readonly name: string,
    private readonly values: Int8Array,
  ) {}

  take(count: number): Int8Array {
    this.at += count;
    if (this.at > this.values.length) {
      throw new StoreError(`adapter tensor ${this.name} has only ${this.values.length} values`);
    }
    return this.values.subarray(this.at - count, this.at);
  }

  finish(): void {
    if (this.at !== this.values.length) {
      throw new StoreError(
        `adapter tensor ${this.name} has ${this.values.length} values, expected ${this.at}`,
      );
    }
  }
}

/** Each value so many times. */
function repeated(values: Int8Array, times: number): Int8Array {
  return Int8Array.from(
    { length: values.length * times },
    (_, i) => values[Math.floor(i / times)] ?? 0,
  );
}
