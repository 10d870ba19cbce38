/** Decoding of tiles: pieces of bytes -> y_hat, in exact integers. */

import { BadStream } from "../errors.js";
import { TILE, boxOf, pieceCount } from "../stream/tiles.js";
import type { IntegerLayer } from "../weights/merge.js";
import { type Extent, type Sizes, padded, powerOfTwo } from "../weights/sizes.js";
import { PieceDecoder, Tables } from "./ans.js";
import { BitCounter } from "./bits.js";
import type { Arena } from "./heap.js";
import { IntegerPacker, firstPlaces, joined, spacedPlaces } from "./layers.js";
import { CLASSES, type Class, STEPS, TileMemory } from "./tile-memory.js";
import { PLAIN, type Wasm } from "./wasm.js";

/** The channel group that step t codes at class p. */
const GROUP_AT = [
  [0, 1, 2, 3],
  [3, 2, 1, 0],
  [2, 3, 0, 1],
  [1, 0, 3, 2],
] as const;

/** Channels of each group that are coded first in step 0. */
const LEADING = 4;

const ACTIVATION_MAX = 1023;
const MU_MAX = 16383;
const LEVEL_MAX = 63;

/** The merged integers of a model at a rate. */
export interface EntropyWeights {
  sizes: Sizes;
  layer(name: string): IntegerLayer;
  tables: Tables;
  yStep: Int32Array;
  zStep: Int32Array;
  zLevel: Int32Array;
  contextFrac: Int32Array;
}

/** A head of one class: the layers that give the means and the levels of its channel group. */
interface Head {
  mu: number;
  level: number;
}

/** The layers of a step. */
interface Step {
  heads: Head[];
  first: number[];
  block: number;
}

/** A tile of h × w latents, in arrays of its own. */
export interface DecodedTile {
  /** [h, w, M], in units of 1/64. */
  yHat: Int16Array<ArrayBuffer>;
  /** [h, w], ideal code length in bits where it is counted; see BitCounter. */
  bits: Float32Array<ArrayBuffer> | null;
}

/** The entropy networks of a model at a rate. */
export class EntropyNetworks {
  readonly sizes: Sizes;
  private readonly tables: Tables;
  private readonly zLevel: Int32Array;
  private readonly zSteps: number;
  private readonly ySteps: number[];
  private readonly contextScales: number[];
  private readonly up: [number[], number[]];
  private readonly blocks: [number, number];
  private readonly steps: Step[];

  constructor(
    private readonly wasm: Wasm,
    arena: Arena,
    weights: EntropyWeights,
  ) {
    const { sizes } = weights;
    this.sizes = sizes;
    this.tables = weights.tables;
    this.zLevel = weights.zLevel;
    const packer = new IntegerPacker(wasm, arena);
    const block = (name: string, channels: number): number =>
      packer.block((part) => weights.layer(`${name}.${part}`), channels);
    const up = (name: string, channels: number): number[] =>
      CLASSES.map((p) => {
        const rows = spacedPlaces(p * channels, 1, channels);
        return packer.linear(weights.layer(name), rows, firstPlaces(sizes.Cz));
      });
    this.up = [up("h_s.0", sizes.Cz), up("h_s.2", sizes.cp)];
    this.blocks = [block("h_s.1", sizes.Cz), block("h_s.3", sizes.cp)];
    this.steps = CLASSES.map((t) => ({
      heads: CLASSES.map((p) => packHead(packer, weights, t, p)),
      first: t === 0 ? [] : CLASSES.map((p) => packFirst(packer, weights, t, p)),
      block: t === 0 ? 0 : block(`step.${t}.block`, sizes.cc),
    }));
    this.zSteps = arena.put(Int32Array.from(firstPlaces(sizes.Cz), (c) => weights.zStep[c] ?? 0));
    const groups = CLASSES.map((g) => spacedPlaces(g, STEPS, sizes.M / STEPS));
    this.ySteps = groups.map((group) =>
      arena.put(Int32Array.from(group, (c) => weights.yStep[c] ?? 0)),
    );
    this.contextScales = groups.map((group) =>
      arena.put(Float32Array.from(group, (c) => powerOfTwo((weights.contextFrac[c] ?? 0) - 6))),
    );
  }

  /** Decode a tile; see Rate.decodeTile. */
  decode(
    pieces: readonly Uint8Array[],
    extent: Extent,
    marked: Uint8Array | null,
    partial: boolean,
    countBits: boolean,
  ): DecodedTile {
    const expected = pieceCount(boxOf(extent.width, extent.height));
    if (extent.height > TILE || extent.width > TILE || pieces.length > expected) {
      throw new BadStream(`a tile of ${extent.height}x${extent.width} has ${pieces.length} pieces`);
    }
    if (!partial && pieces.length < expected) {
      throw new BadStream(`a tile has ${pieces.length} of ${expected} pieces`);
    }
    return this.wasm.scratch((arena) => {
      const decoders = pieces.map(
        (piece) => new PieceDecoder(this.wasm, arena, this.tables, piece),
      );
      const tile = new TileMemory(this.wasm, arena, extent, this.sizes, marked);
      const counter = countBits ? new BitCounter(this.wasm, this.tables.costs(), tile) : null;
      let segment = 0;
      const pull = (from: number, to: number): void => {
        const decoder = decoders[Math.min(segment, expected - 1)];
        segment += 1;
        if (decoder === undefined) return;
        const { levels, symbols, order, count, channels } = tile;
        decoder.pull({ levels, count, stride: channels, from, to }, symbols, order);
      };
      this.decodeHyper(arena, tile, pull, counter);
      for (const t of CLASSES) this.decodeStep(tile, t, pull, counter);
      for (const decoder of decoders) decoder.finish();
      return { yHat: tile.yHat(), bits: counter?.bits ?? null };
    });
  }

  /** Decode z, and compute the features P from it. */
  private decodeHyper(
    arena: Arena,
    tile: TileMemory,
    pull: (from: number, to: number) => void,
    counter: BitCounter | null,
  ): void {
    const { wasm } = this;
    const { kernels } = wasm;
    const { Cz } = this.sizes;
    const { rows, columns } = tile.hyper;
    const channels = padded(Cz);
    tile.useGroup(rows * columns, channels);
    this.setHyperLevels(tile);
    pull(0, Cz);
    counter?.addHyper(Cz);
    kernels.dequantise(tile.symbols, rows * columns, channels, this.zSteps);
    const stride = 2 * channels;
    const x = arena.allocate(4 * rows * columns * stride);
    this.upsample(this.up[0], tile.symbols, stride, tile.hyper, x, stride);
    kernels.block(this.blocks[0], x, stride, 2 * rows, 2 * columns, tile.scratch);
    const twice = { rows: 2 * rows, columns: 2 * columns };
    this.upsample(this.up[1], x, stride, twice, tile.features, tile.featureStride);
    kernels.block(
      this.blocks[1],
      tile.features,
      tile.featureStride,
      4 * rows,
      4 * columns,
      tile.scratch,
    );
  }

  /** Run a layer whose outputs are 2×2 positions each. */
  private upsample(
    layers: number[],
    x: number,
    stride: number,
    size: { rows: number; columns: number },
    out: number,
    outStride: number,
  ): void {
    const low = -ACTIVATION_MAX;
    for (let r = 0; r < size.rows; r++) {
      const from = x + r * size.columns * stride;
      layers.forEach((layer, p) => {
        const to = out + ((2 * r + (p >> 1)) * 2 * size.columns + (p & 1)) * outStride;
        this.wasm.kernels.linear(
          layer,
          from,
          stride,
          size.columns,
          to,
          2 * outStride,
          PLAIN,
          low,
          -low,
        );
      });
    }
  }

  /** Levels of z: those of the channels, but 0 where all latents of a hyper-latent are marked. */
  private setHyperLevels(tile: TileMemory): void {
    const { rows, columns } = tile.hyper;
    const channels = padded(this.sizes.Cz);
    const levels = this.wasm.i16(tile.levels, rows * columns * channels);
    for (let cell = 0; cell < rows * columns; cell++) {
      const at = cell * channels;
      if (tile.isCoded(Math.floor(cell / columns), cell % columns)) levels.set(this.zLevel, at);
      else levels.fill(0, at, at + channels);
    }
  }

  /** Decode step t of y. */
  private decodeStep(
    tile: TileMemory,
    t: Class,
    pull: (from: number, to: number) => void,
    counter: BitCounter | null,
  ): void {
    const step = this.steps[t] as Step;
    const quarter = this.sizes.M / STEPS;
    tile.useGroup(tile.extent.height * tile.extent.width, padded(quarter));
    if (t > 0) this.runHidden(tile, step);
    this.runHeads(tile, step, t);
    tile.skipMarked();
    if (t === 0) {
      pull(0, Math.min(LEADING, quarter));
      pull(Math.min(LEADING, quarter), quarter);
    } else pull(0, quarter);
    counter?.addStep(quarter);
    this.reconstruct(tile, t);
  }

  /** Run the first layer and the block of a step. */
  private runHidden(tile: TileMemory, step: Step): void {
    const { kernels } = this.wasm;
    const { height, width } = tile.extent;
    const stride = tile.hiddenStride;
    for (const line of tile.lines) {
      const { p, row, column, count } = line;
      kernels.linear(
        step.first[p] as number,
        tile.featuresAt(row, column),
        2 * tile.featureStride,
        count,
        tile.hidden + (row * width + column) * stride,
        2 * stride,
        PLAIN,
        -ACTIVATION_MAX,
        ACTIVATION_MAX,
      );
    }
    kernels.block(step.block, tile.hidden, stride, height, width, tile.scratch);
  }

  /** Run the heads of step t: means and levels in coding order. */
  private runHeads(tile: TileMemory, step: Step, t: number): void {
    const { kernels } = this.wasm;
    const stride = 2 * tile.channels;
    for (const { p, row, column, count, start } of tile.lines) {
      const { mu, level } = step.heads[p] as Head;
      const from =
        t === 0
          ? tile.featuresAt(row, column)
          : tile.hidden + (row * tile.extent.width + column) * tile.hiddenStride;
      const between = 2 * (t === 0 ? tile.featureStride : tile.hiddenStride);
      const at = start * stride;
      kernels.linear(mu, from, between, count, tile.mu + at, stride, PLAIN, -MU_MAX, MU_MAX);
      kernels.linear(level, from, between, count, tile.levels + at, stride, PLAIN, 0, LEVEL_MAX);
    }
  }

  /** Means and symbols of step t -> latents, and what the next steps see of them. */
  private reconstruct(tile: TileMemory, t: Class): void {
    const bytes = 2 * tile.channels;
    for (const { p, row, column, count, start } of tile.lines) {
      const group = GROUP_AT[t][p];
      const place = row * tile.extent.width + column;
      this.wasm.kernels.reconstruct(
        tile.mu + start * bytes,
        tile.symbols + start * bytes,
        count,
        tile.channels,
        this.ySteps[group] as number,
        this.contextScales[group] as number,
        tile.latents + (place * STEPS + group) * bytes,
        2 * STEPS * bytes,
        tile.featuresAt(row, column) + 2 * padded(this.sizes.cp) + t * bytes,
        2 * tile.featureStride,
      );
    }
  }
}

function packHead(packer: IntegerPacker, weights: EntropyWeights, t: number, p: Class): Head {
  const { M, cp, cc } = weights.sizes;
  const layer = weights.layer(`step.${t}.head`);
  const columns = firstPlaces(t === 0 ? cp : cc);
  const group = (GROUP_AT[t] as readonly number[])[p] ?? 0;
  return {
    mu: packer.linear(layer, spacedPlaces(group, STEPS, M / STEPS), columns),
    level: packer.linear(layer, spacedPlaces(M + group, STEPS, M / STEPS), columns),
  };
}

/** The first layer of step t: it reads the features, then the groups in the order of the steps. */
function packFirst(packer: IntegerPacker, weights: EntropyWeights, t: number, p: Class): number {
  const { M, cp, cc } = weights.sizes;
  const known = GROUP_AT.slice(0, t).map((groups) => spacedPlaces(cp + groups[p], STEPS, M / STEPS));
  const columns = joined(firstPlaces(cp), ...known);
  return packer.linear(weights.layer(`step.${t}.first`), firstPlaces(cc), columns);
}
