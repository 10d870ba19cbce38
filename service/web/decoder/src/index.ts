/** Decoder of Rankpress streams for web pages. */

import { abortable } from "./abort.js";
import { BadParameter } from "./errors.js";
import { countBits, decodePicture, type DecoderParts } from "./picture/picture.js";
import { WorkerPool } from "./pool/pool.js";
import { pageUrl, startWorker } from "./pool/start-worker.js";
import { compileModule, lazyWebp } from "./pool/wasm-files.js";
import { bytesOf } from "./stream/bytes.js";
import type { BitMap, DecodeOptions, DecoderOptions } from "./types.js";
import { WeightStore } from "./weights/weights.js";

export * from "./errors.js";
export { info } from "./info.js";
export type * from "./types.js";

/** A decoder: some workers, and the weights that streams have asked for. */
export class Decoder {
  private constructor(private readonly parts: DecoderParts) {}

  /** @internal Use `createDecoder`. */
  static async create(options: DecoderOptions): Promise<Decoder> {
    const threads = options.threads ?? Math.min(4, navigator.hardwareConcurrency || 2);
    const maxPixels = options.maxPixels ?? 100_000_000;
    checkNumber("threads", threads);
    checkNumber("maxPixels", maxPixels);
    const signal = options.signal ?? new AbortController().signal;
    const weights = new WeightStore(new URL(options.weightsUrl, pageUrl()));
    const wasmUrl = options.wasmUrl ?? new URL("./kernels.wasm", import.meta.url);
    const webpUrl = options.webpUrl ?? new URL("./webp.wasm", import.meta.url);
    const kernels = await abortable(compileModule(wasmUrl), signal);
    const pool = new WorkerPool(() => startWorker(options.workerUrl), kernels, threads);
    return new Decoder({ pool, weights, webp: lazyWebp(webpUrl), maxPixels });
  }

  /**
   * Decodes a stream.
   *
   * @returns the picture, or the part of it that is asked for, in sRGB unless `raw`. It is never
   * enlarged. Colours are not premultiplied; those of pixels without alpha are 0.
   * @throws BadStream (UnsupportedStream, UnknownModel, UnknownUpdate), TooManyPixels,
   * BadParameter, StoreError, another RankpressError where a worker fails; or the signal's reason.
   */
  async decode(
    bytes: ArrayBuffer | ArrayBufferView,
    options: DecodeOptions = {},
  ): Promise<ImageData> {
    return decodePicture(this.parts, bytesOf(bytes), options);
  }

  /** Counts where the bits of a stream go, for each latent of 16×16 pixels; raises as `decode`. */
  async bits(
    bytes: ArrayBuffer | ArrayBufferView,
    options: Pick<DecodeOptions, "partial" | "signal"> = {},
  ): Promise<BitMap> {
    return countBits(this.parts, bytesOf(bytes), options);
  }

  /** Stops the workers. What is being decoded is rejected. */
  close(): void {
    this.parts.pool.close();
  }
}

/** Makes a decoder. Weights are fetched when a stream asks for them. Raises RankpressError. */
export function createDecoder(options: DecoderOptions): Promise<Decoder> {
  return Decoder.create(options);
}

function checkNumber(name: string, value: number): void {
  if (Number.isInteger(value) && value >= 1) return;
  throw new BadParameter(`${name} is ${value}, expected a whole number of at least 1`);
}
