/** The index of weights: the models, rates and ready updates that an address offers. */

import { sha256 } from "@noble/hashes/sha2.js";
import { StoreError, UnknownModel, UnknownUpdate } from "../errors.js";
import type { Sizes } from "../networks/core.js";
import { hex } from "../stream/bytes.js";
import { RATE_UNIT, type Header } from "../stream/stream.js";
import type { Tune } from "../types.js";
import type { FileEntry } from "./files.js";

const SIZE_NAMES = ["M", "Cz", "c8", "c16", "ne8", "ne16", "nd8", "nd16", "cp", "cc"] as const;

/** A rate of a model; `adapter` is null for the base's own rate. */
export interface IndexRate {
  rate: number;
  tune: Tune;
  superseded: boolean;
  adapter: FileEntry | null;
}

/** A model: its hash is that of its base, of which decoders fetch a part. */
export interface IndexModel {
  name: string;
  sha256: string;
  sizes: Sizes;
  /** Weight shape of every layer of the base. */
  layers: Record<string, number[]>;
  decoder: FileEntry;
  previews: FileEntry | null;
  rates: IndexRate[];
  updates: FileEntry[];
}

/** The weights that made a stream: a model, and adapters with their shares in sixteenths. */
export interface Mix {
  model: IndexModel;
  shares: { adapter: FileEntry | null; sixteenths: number }[];
}

/** Reads an index. Raises StoreError where it is not one of schema 1. */
export function readIndex(text: string): IndexModel[] {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw new StoreError("the index of weights is no JSON");
  }
  const index = record(value, "index");
  if (index["schema"] !== 1) {
    throw new StoreError(`the index of weights has schema ${String(index["schema"])}, expected 1`);
  }
  return list(index["models"], "models").map(modelOf);
}

/**
 * The weights that made a stream: of each model, and of the adapters of the rates that it needs,
 * those whose identity begins with what the header names.
 *
 * Raises UnknownModel where there are none.
 */
export function findMix(models: readonly IndexModel[], header: Header): Mix {
  for (const model of models) {
    for (const mix of candidates(model, header)) {
      if (identity(mix).startsWith(header.model)) return mix;
    }
  }
  throw new UnknownModel(
    `the stream needs weights ${header.model} at rate ${header.rate16 / RATE_UNIT}, tune ` +
      `${header.tune}; the weights URL does not offer them`,
  );
}

/** The ready update that a stream names. Raises UnknownUpdate. */
export function findUpdate(model: IndexModel, reference: string): FileEntry {
  const update = model.updates.find((one) => one.sha256.startsWith(reference));
  if (update !== undefined) return update;
  throw new UnknownUpdate(
    `the stream needs the ready update ${reference} of model ${model.name}; ` +
      "the weights URL does not offer it",
  );
}

/** Mixes that may have made a rate, those of the newest adapters first. */
function candidates(model: IndexModel, { rate16, tune }: Header): Mix[] {
  const whole = Math.floor(rate16 / RATE_UNIT);
  const parts = rate16 % RATE_UNIT;
  const at = (rate: number): IndexRate[] => {
    const all = model.rates.filter((one) => one.rate === rate && one.tune === tune);
    const superseded = all.filter((one) => one.superseded).reverse();
    return [...all.filter((one) => !one.superseded), ...superseded];
  };
  if (parts === 0) {
    return at(whole).map(({ adapter }) => ({
      model,
      shares: [{ adapter, sixteenths: RATE_UNIT }],
    }));
  }
  return at(whole).flatMap((low) =>
    at(whole + 1).map((high) => ({
      model,
      shares: [
        { adapter: low.adapter, sixteenths: RATE_UNIT - parts },
        { adapter: high.adapter, sixteenths: parts },
      ],
    })),
  );
}

function identity({ model, shares }: Mix): string {
  const hash = sha256.create().update(bytesOfHex(model.sha256));
  for (const { adapter } of shares) if (adapter !== null) hash.update(bytesOfHex(adapter.sha256));
  return hex(hash.digest());
}

function bytesOfHex(digits: string): Uint8Array {
  return Uint8Array.from(digits.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}

function modelOf(value: unknown): IndexModel {
  const entry = record(value, "model");
  const sizes = record(entry["sizes"], "sizes");
  const layers = record(entry["layers"], "layers");
  for (const shape of Object.values(layers)) list(shape, "shape").forEach((n) => whole(n, "shape"));
  return {
    name: string(entry["name"], "name"),
    sha256: digest(entry["sha256"]),
    sizes: Object.fromEntries(
      SIZE_NAMES.map((name) => [name, whole(sizes[name], name)]),
    ) as unknown as Sizes,
    layers: layers as Record<string, number[]>,
    decoder: fileOf(record(entry["decoder"], "decoder")),
    previews: entry["previews"] === null ? null : fileOf(record(entry["previews"], "previews")),
    rates: list(entry["rates"], "rates").map(rateOf),
    updates: list(entry["updates"], "updates").map((one) => fileOf(record(one, "update"))),
  };
}

function rateOf(value: unknown): IndexRate {
  const entry = record(value, "rate");
  const tune = string(entry["tune"], "tune");
  if (tune !== "psnr" && tune !== "ms-ssim") throw damaged("tune", tune);
  return {
    rate: whole(entry["rate"], "rate"),
    tune,
    superseded: entry["superseded"] === true,
    adapter: entry["file"] === null ? null : fileOf(entry),
  };
}

function fileOf(entry: Record<string, unknown>): FileEntry {
  return {
    file: string(entry["file"], "file"),
    sha256: digest(entry["sha256"]),
    bytes: whole(entry["bytes"], "bytes"),
  };
}

function record(value: unknown, name: string): Record<string, unknown> {
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw damaged(name, value);
  return value as Record<string, unknown>;
}

function list(value: unknown, name: string): unknown[] {
  if (!Array.isArray(value)) throw damaged(name, value);
  return value;
}

function string(value: unknown, name: string): string {
  if (typeof value !== "string") throw damaged(name, value);
  return value;
}

function whole(value: unknown, name: string): number {
  if (typeof value !== "number" || !Number.isSafeInteger(value) || value < 0) {
    throw damaged(name, value);
  }
  return value;
}

function digest(value: unknown): string {
  const text = string(value, "sha256");
  if (!/^[0-9a-f]{64}$/.test(text)) throw damaged("sha256", text);
  return text;
}

function damaged(name: string, value: unknown): StoreError {
  return new StoreError(`${name} in the index of weights is ${JSON.stringify(value)}`);
}
