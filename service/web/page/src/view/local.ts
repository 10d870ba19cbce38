/** Decoding in this browser, by the package rankpress-decoder; it is loaded when it is first used. */

import type { BitMap, Decoder } from "../../../decoder/src/index.js";
import { addressOf } from "../service.js";

type Package = typeof import("../../../decoder/src/index.js");

export class LocalDecoder {
  #decoder: Promise<Decoder> | null = null;

  /** Decode a stream. The time is that of decoding alone, without loading the decoder. */
  async decode(stream: Blob, signal: AbortSignal): Promise<{ picture: ImageData; ms: number }> {
    const decoder = await this.#load();
    const bytes = await bytesOf(stream);
    signal.throwIfAborted();
    const start = performance.now();
    const picture = await decoder.decode(bytes, { signal });
    return { picture, ms: performance.now() - start };
  }

  /** Bits of every block of a stream. */
  async bits(stream: Blob, signal: AbortSignal): Promise<BitMap> {
    const decoder = await this.#load();
    return decoder.bits(await bytesOf(stream), { signal });
  }

  /** The decoder; a failed attempt is made again at the next call. */
  #load(): Promise<Decoder> {
    this.#decoder ??= create().catch((error: unknown) => {
      this.#decoder = null;
      throw error;
    });
    return this.#decoder;
  }
}

async function create(): Promise<Decoder> {
  const loaded = await load(new URL("./decoder/rankpress-decoder.js", import.meta.url).href);
  return loaded.createDecoder({ weightsUrl: addressOf("weights/index.json") });
}

async function load(url: string): Promise<Package> {
  try {
    return (await import(url)) as Package;
  } catch {
    throw new Error("The decoder for browsers could not be loaded from the service.");
  }
}

async function bytesOf(blob: Blob): Promise<Uint8Array> {
  return new Uint8Array(await blob.arrayBuffer());
}
