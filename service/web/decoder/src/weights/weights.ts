/**
 * Weights by address: finds those that made a stream, and fetches only what the stream needs.
 *
 * Files have the hash of their content in their names and are kept in memory. The index is read
 * again, at most every ten seconds, when a stream names weights that it does not have.
 */

import { sha256 } from "@noble/hashes/sha2.js";
import { abortable } from "../abort.js";
import { StoreError, UnknownModel } from "../errors.js";
import type { Resource } from "../pool/messages.js";
import { hex } from "../stream/bytes.js";
import type { Header, Stream } from "../stream/stream.js";
import { fetchBytes, FileCache } from "./files.js";
import { readTensors } from "./tensors.js";
import { findMix, findUpdate, readIndex, type IndexModel, type Mix } from "./weight-index.js";

const REREAD_MS = 10_000;

/** An index and when it was asked for. */
interface Reading {
  models: Promise<IndexModel[]>;
  atMs: number;
}

export class WeightStore {
  private readonly files: FileCache;
  private reading: Reading | null = null;

  /** @param url address of the index. */
  constructor(private readonly url: URL) {
    this.files = new FileCache(url);
  }

  /** The weights that made a stream. Raises UnknownModel and StoreError. */
  async find(header: Header, signal: AbortSignal): Promise<Mix> {
    const reading = (this.reading ??= this.read());
    try {
      return findMix(await abortable(reading.models, signal), header);
    } catch (error) {
      const isOld = performance.now() - reading.atMs > REREAD_MS;
      if (!(error instanceof UnknownModel) || !isOld) throw error;
      if (this.reading === reading) this.reading = this.read();
      return findMix(await abortable((this.reading ?? this.read()).models, signal), header);
    }
  }

  /** What decoding latents needs: the model and its rate. */
  async rate(mix: Mix, signal: AbortSignal): Promise<Resource[]> {
    const { sizes, layers, sha256: model, decoder } = mix.model;
    const [file, adapters] = await Promise.all([
      this.files.get(decoder, signal),
      Promise.all(mix.shares.map(({ adapter }) => adapter && this.files.get(adapter, signal))),
    ]);
    const shares = mix.shares.map(({ sixteenths }, i) => ({ adapter: adapters[i]!, sixteenths }));
    return [
      { kind: "model", key: model, sizes, layers, file },
      { kind: "rate", key: rateKey(mix), model, shares },
    ];
  }

  /**
   * What the synthesis of a stream needs besides its rate. Raises UnknownUpdate.
   *
   * @param stream names a ready update, holds its own, or has none.
   */
  async synthesis(
    mix: Mix,
    { ready, update }: Pick<Stream, "ready" | "update">,
    signal: AbortSignal,
  ): Promise<Resource> {
    const updates: Uint8Array[] = [];
    if (ready !== null) updates.push(await this.files.get(findUpdate(mix.model, ready), signal));
    if (update !== null) updates.push(update.slice());
    const names = updates.map((one) => hex(sha256(one)));
    const rate = rateKey(mix);
    return { kind: "synthesis", key: ["synthesis", rate, ...names].join(" "), rate, updates };
  }

  /** The preview network of a model that has one, and the latents around a window that it reads. */
  async previews(
    { model }: Mix,
    signal: AbortSignal,
  ): Promise<{ resource: Resource; halo: number }> {
    if (model.previews === null) throw new StoreError(`model ${model.name} has no preview network`);
    const file = await this.files.get(model.previews, signal);
    const names = [...readTensors(file).keys()];
    const halo = names.filter((name) => /^trunk\.[0-9]+\.dw\.weight$/.test(name)).length;
    const key = `previews ${model.previews.sha256}`;
    return { resource: { kind: "previews", key, sizes: model.sizes, file }, halo };
  }

  private read(): Reading {
    const options = { cache: "no-cache" as const, signal: new AbortController().signal };
    const models = fetchBytes(this.url, options).then((bytes) =>
      readIndex(new TextDecoder().decode(bytes)),
    );
    const reading: Reading = { models, atMs: performance.now() };
    models.catch(() => {
      if (this.reading === reading) this.reading = null;
    });
    return reading;
  }
}

/** The name by which workers know the rate of a mix. */
export function rateKey({ model, shares }: Mix): string {
  const names = shares.map(
    ({ adapter, sixteenths }) => `${adapter?.sha256 ?? "base"}*${sixteenths}`,
  );
  return [model.sha256, ...names].join(" ");
}
