/** Updates of the synthesis: the coded bytes of a stream's section 6 or of a ready update. */

import { BadStream } from "../errors.js";
import { PieceDecoder, type Tables } from "../networks/ans.js";
import type { Wasm } from "../networks/wasm.js";
import type { LayerUpdate, LayerUpdates } from "./lowrank.js";
import type { Shapes } from "./sizes.js";

const MAX_RANK = 8;
const SYMBOL_MAX = 127;

/** Scale levels at which ranks, gates, exponents and levels are coded. */
const RANK_LEVEL = 20;
const GATE_LEVEL = 14;
const EXPONENT_LEVEL = 30;
const LEVEL_LEVEL = 40;

/** Exponents and levels are coded as differences from these. */
const EXPONENT_MID = -8;
const LEVEL_MID = 16;

/** What an open gate sends: the delta of a bias [N], or the factors b [N] and a [K] of a piece. */
interface Piece {
  name: string;
  lengths: number[];
}

/** Decode an update of layers with these shapes. Raises BadStream. */
export function readUpdate(
  wasm: Wasm,
  tables: Tables,
  shapes: Shapes,
  data: Uint8Array,
): LayerUpdates {
  return wasm.scratch((arena) => {
    const decoder = new PieceDecoder(wasm, arena, tables, data);
    const take = (count: number, level: number, low: number, high: number): Int16Array => {
      const symbols = decoder.symbols(count, level);
      if (symbols.some((symbol) => symbol < low || symbol > high)) {
        throw new BadStream(`model update: a symbol is outside ${low} to ${high}`);
      }
      return symbols;
    };
    const rank = take(1, RANK_LEVEL, 0, MAX_RANK)[0] ?? 0;
    const gates = allGates(shapes, rank);
    const isOpen = take(gates.length, GATE_LEVEL, 0, 1);
    const open = gates.filter((_, i) => isOpen[i] === 1);
    const exponents = take(open.length, EXPONENT_LEVEL, -20 - EXPONENT_MID, -EXPONENT_MID);
    const lengths = open.flatMap((piece) => piece.lengths);
    const levels = take(lengths.length, LEVEL_LEVEL, 1 - LEVEL_MID, 63 - LEVEL_MID);
    const vectors = lengths.map((length, i) =>
      take(length, (levels[i] ?? 0) + LEVEL_MID, -SYMBOL_MAX, SYMBOL_MAX),
    );
    decoder.finish();
    return joinPieces(shapes, open, exponents, vectors);
  });
}

/** The gates of all layers in order of name: one for the bias, and one for each rank-1 piece. */
function allGates(shapes: Shapes, rank: number): Piece[] {
  return [...shapes.keys()].sort().flatMap((name) => {
    const [n = 0, k = 0, ...more] = shapes.get(name) ?? [];
    const pieces = more.length === 0 ? rank : 0;
    return [{ name, lengths: [n] }, ...Array<Piece>(pieces).fill({ name, lengths: [n, k] })];
  });
}

function joinPieces(
  shapes: Shapes,
  open: Piece[],
  exponents: Int16Array,
  vectors: Int16Array[],
): LayerUpdates {
  const layers = new Map<string, LayerUpdate>();
  const unread = vectors.values();
  const next = (): Int16Array => unread.next().value ?? new Int16Array();
  const factors = new Map<string, { b: Int16Array; a: Int16Array; exponent: number }[]>();
  open.forEach(({ name, lengths }, i) => {
    const exponent = (exponents[i] ?? 0) + EXPONENT_MID;
    const pieces = factors.get(name) ?? [];
    factors.set(name, pieces);
    const layer = layers.get(name) ?? unchanged(shapes.get(name) ?? []);
    layers.set(name, layer);
    if (lengths.length === 1) {
      layer.bias.set(next());
      layer.biasExponents.fill(exponent);
    } else pieces.push({ b: next(), a: next(), exponent });
  });
  for (const [name, layer] of layers) {
    const pieces = factors.get(name) ?? [];
    const rank = pieces.length;
    layer.b = Int8Array.from({ length: layer.bias.length * rank }, (_, i) => {
      return pieces[i % rank]?.b[Math.floor(i / rank)] ?? 0;
    });
    layer.a = Int8Array.from(pieces.flatMap(({ a }) => [...a]));
    layer.exponents = Int8Array.from(pieces, ({ exponent }) => exponent);
  }
  return layers;
}

/** An update that changes nothing. */
function unchanged(shape: readonly number[]): LayerUpdate {
  const [n = 0] = shape;
  const none = new Int8Array();
  const zeros = { bias: new Int8Array(n), biasExponents: new Int8Array(n) };
  return { b: none, a: none, exponents: none, ...zeros };
}
