/** What is stored exactly, laid over decoded pixels piece by piece: graphics layer and alpha. */

import type { Resource } from "../pool/messages.js";
import type { WorkerPool } from "../pool/pool.js";
import { readAlpha } from "../stream/alpha.js";
import { layOver, type GraphicsLayer } from "../stream/graphics.js";
import {
  areaOf,
  boxOf,
  cells,
  cut,
  losslessPieces,
  scaled,
  type Box,
  type Scale,
} from "../stream/tiles.js";
import type { PixelBuffer } from "./pixels.js";

/** What decoding pieces of a picture takes. */
export interface PieceContext {
  pool: WorkerPool;
  /** Fetches libwebp's decoder. */
  webp(signal: AbortSignal): Promise<Resource>;
  signal: AbortSignal;
  /** Of the whole picture, in pixels. */
  width: number;
  height: number;
}

/** A piece and what of it is needed. */
interface NeededPiece {
  /** Coded pixels, in a buffer of their own. */
  data: Uint8Array<ArrayBuffer>;
  piece: Box;
  part: Box;
}

/** Replaces the marked pixels of a buffer. Raises BadStream where a piece is damaged. */
export async function layGraphics(
  context: PieceContext,
  layer: GraphicsLayer,
  buffer: PixelBuffer,
): Promise<void> {
  const { hasAlpha, mask } = layer;
  await eachPiece(context, layer.pieces, buffer.box, async (needed, webp) => {
    const input = { ...needed, webp: webp.key, hasAlpha };
    const samples = await context.pool.run("piece", input, optionsOf(context, webp, needed));
    layOver(buffer.samples, buffer.box, samples, needed.part, mask);
  });
}

/** Replaces the marked pixels of a buffer at 1/scale of the size by the layer's, shrunk. */
export async function shrinkGraphics(
  context: PieceContext,
  layer: GraphicsLayer,
  buffer: PixelBuffer,
  scale: Scale,
): Promise<void> {
  const { mask } = layer;
  await eachPiece(context, layer.pieces, scaled(buffer.box, scale), async (needed, webp) => {
    const place = cells(needed.part, scale);
    const small = buffer.part(place);
    const input = { ...needed, webp: webp.key, small, place, scale, mask };
    const samples = await context.pool.run("shrunkPiece", input, optionsOf(context, webp, needed));
    buffer.put(samples, place);
  });
}

/** Gives a buffer at 1/scale of the size the alpha of a coded plane. Raises BadStream. */
export async function layAlpha(
  context: PieceContext,
  coded: Uint8Array,
  buffer: PixelBuffer,
  scale: Scale | 1,
): Promise<void> {
  const { filter, pieces } = readAlpha(coded, context.width, context.height);
  await eachPiece(context, pieces, scaled(buffer.box, scale), async (needed, webp) => {
    const input = { ...needed, webp: webp.key, filter, scale };
    const plane = await context.pool.run("alpha", input, optionsOf(context, webp, needed));
    buffer.putAlpha(plane, cells(needed.part, scale));
  });
}

/** Works on the pieces with bytes under a box of pixels, as many at a time as there are workers. */
async function eachPiece(
  context: PieceContext,
  coded: readonly Uint8Array[],
  pixels: Box,
  work: (needed: NeededPiece, webp: Resource) => Promise<void>,
): Promise<void> {
  const { width, height, signal } = context;
  const pieces = losslessPieces(width, height);
  const within = cut(pixels, boxOf(width, height));
  const needed = pieces.flatMap((piece, i) => {
    const part = cut(piece, within);
    const data = coded[i]!;
    return data.length > 0 && areaOf(part) > 0 ? [{ data, piece, part }] : [];
  });
  if (needed.length === 0) return;
  const webp = await context.webp(signal);
  const next = needed.values();
  const workInTurn = async (): Promise<void> => {
    for (const one of next) await work({ ...one, data: new Uint8Array(one.data) }, webp);
  };
  await Promise.all(Array.from({ length: context.pool.size }, workInTurn));
}

function optionsOf({ signal }: PieceContext, webp: Resource, { data }: NeededPiece) {
  return { resources: [webp], signal, transfer: [data.buffer] };
}
