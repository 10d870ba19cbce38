/**
 * What the pool and its workers say to each other.
 *
 * A worker first gets the kernels, then resources and tasks. It builds a resource when it gets it,
 * and keeps it until it is told to drop it. It does one task after the other, and answers each.
 */

import type { SentError } from "../errors.js";
import type { DecodedTile, Extent, Sizes } from "../networks/core.js";
import type { Edges } from "../picture/resample.js";
import type { AlphaFilter } from "../stream/alpha.js";
import type { Mask } from "../stream/graphics.js";
import type { Box, Scale } from "../stream/tiles.js";

/** A rate's adapter (a safetensors file) and its weight in a mix; null is the base's own rate. */
export interface SentShare {
  adapter: Uint8Array | null;
  sixteenths: number;
}

/** Something that tasks need, by the name that they use. */
export type Resource =
  | { kind: "model"; key: string; sizes: Sizes; layers: Record<string, number[]>; file: Uint8Array }
  | { kind: "rate"; key: string; model: string; shares: SentShare[] }
  | { kind: "synthesis"; key: string; rate: string; updates: Uint8Array[] }
  | { kind: "previews"; key: string; sizes: Sizes; file: Uint8Array }
  | { kind: "webp"; key: string; module: WebAssembly.Module };

/** RGBA samples, row by row. */
export type Rgba = Uint8ClampedArray<ArrayBuffer>;

/** A window of latents in units of 1/64, and the part of it to paint. */
export interface WindowInput {
  /** [window height, window width, M]. */
  yHat: Int16Array<ArrayBuffer>;
  window: Extent;
  inner: Box;
  /** Whether the channels of each pixel are averaged. */
  grey: boolean;
}

/** A piece of a lossless picture, and the part of it that is needed, in the same coordinates. */
export interface PieceInput {
  webp: string;
  data: Uint8Array;
  piece: Box;
  part: Box;
}

/** Tasks by name, with what they take and give. */
export interface Tasks {
  /** Decodes the latents of a tile. */
  tile: {
    input: {
      rate: string;
      pieces: Uint8Array[];
      height: number;
      width: number;
      marked: Uint8Array | null;
      partial: boolean;
      countBits: boolean;
    };
    result: DecodedTile;
  };
  /** Pixels of a window, as RGBA. */
  window: { input: WindowInput & { synthesis: string }; result: Rgba };
  /** Pixels of a window at 1/scale of the size, as RGBA. */
  preview: { input: WindowInput & { previews: string; scale: Scale }; result: Rgba };
  /** Samples of a part of a piece, as RGBA. */
  piece: { input: PieceInput & { hasAlpha: boolean }; result: Rgba };
  /** Alpha of a part of a piece of an alpha plane, or its means over scale × scale pixels. */
  alpha: {
    input: PieceInput & { filter: AlphaFilter; scale: Scale | 1 };
    result: Uint8Array<ArrayBuffer>;
  };
  /** Samples at 1/scale with the marked part of a graphics layer's piece, shrunk, laid over. */
  shrunkPiece: {
    input: PieceInput & { small: Rgba; place: Box; scale: Scale; mask: Mask };
    result: Rgba;
  };
  /** A picture at another size. */
  resample: {
    input: {
      samples: Rgba;
      width: number;
      height: number;
      outWidth: number;
      outHeight: number;
      part: Edges | null;
      hasAlpha: boolean;
    };
    result: Rgba;
  };
  /** A picture with the colours of an ICC profile in sRGB. */
  srgb: {
    input: { samples: Rgba; width: number; height: number; icc: Uint8Array<ArrayBuffer> };
    result: Rgba;
  };
}

export type TaskName = keyof Tasks;

/** A message to a worker. */
export type Request =
  | { kind: "start"; kernels: WebAssembly.Module }
  | { kind: "resource"; resource: Resource }
  | { kind: "drop"; key: string }
  | { [K in TaskName]: { kind: "task"; name: K; input: Tasks[K]["input"] } }[TaskName];

/** What a worker answers to a task. */
export type Reply =
  | { result: Tasks[TaskName]["result"] }
  | {
      error: SentError;
      /** Whether the worker may be left in a bad state. */
      fatal: boolean;
    };
