/** A worker of the pool: an instance of the kernels, weights, and the tasks that run on them. */

import { RankpressError, sentError } from "./errors.js";
import {
  Core,
  type ModelWeights,
  type Previews,
  type Rate,
  type Synthesis,
} from "./networks/core.js";
import { toSrgb } from "./picture/color.js";
import { cropped, LosslessDecoder } from "./picture/lossless.js";
import { blockMeans, lanczos, lanczosWithAlpha } from "./picture/resample.js";
import type { Reply, Request, Resource, Rgba, TaskName, Tasks } from "./pool/messages.js";
import { undoFilter } from "./stream/alpha.js";
import { layOverScaled } from "./stream/graphics.js";
import { heightOf, widthOf } from "./stream/tiles.js";
import { readTensors } from "./weights/tensors.js";

const scope = self as unknown as DedicatedWorkerGlobalScope;

type Task<K extends TaskName> = (
  input: Tasks[K]["input"],
) => Tasks[K]["result"] | Promise<Tasks[K]["result"]>;

/** Resources of one kind by key; one that could not be built raises its error when it is used. */
class ResourceMap<T> {
  private readonly entries = new Map<string, () => T>();

  build(key: string, make: () => T): void {
    try {
      const value = make();
      this.entries.set(key, () => value);
    } catch (error) {
      this.entries.set(key, () => {
        throw error;
      });
    }
  }

  get(key: string): T {
    const entry = this.entries.get(key);
    if (entry === undefined) throw new RankpressError(`the worker has no ${key}`);
    return entry();
  }

  /** Removes a resource. Returns it if it is there and was built. */
  take(key: string): T | null {
    const entry = this.entries.get(key);
    this.entries.delete(key);
    try {
      return entry?.() ?? null;
    } catch {
      return null;
    }
  }
}

const models = new ResourceMap<ModelWeights>();
const rates = new ResourceMap<Rate>();
const syntheses = new ResourceMap<Synthesis>();
const previews = new ResourceMap<Previews>();
const lossless = new ResourceMap<Promise<LosslessDecoder>>();
let core: Core | undefined;

function startedCore(): Core {
  if (core === undefined) throw new RankpressError("the worker was not started");
  return core;
}

function addResource(resource: Resource): void {
  const { key } = resource;
  switch (resource.kind) {
    case "model":
      models.build(key, () => ({
        sizes: resource.sizes,
        shapes: new Map(Object.entries(resource.layers)),
        tensors: readTensors(resource.file),
      }));
      break;
    case "rate":
      rates.build(key, () => {
        const shares = resource.shares.map(({ adapter, sixteenths }) => ({
          adapter: adapter && readTensors(adapter),
          sixteenths,
        }));
        return startedCore().merge(models.get(resource.model), shares);
      });
      break;
    case "synthesis":
      syntheses.build(key, () => rates.get(resource.rate).synthesis(resource.updates));
      break;
    case "previews":
      previews.build(key, () => startedCore().previews(readTensors(resource.file), resource.sizes));
      break;
    case "webp":
      lossless.build(key, () => LosslessDecoder.create(resource.module));
  }
}

function dropResource(key: string): void {
  syntheses.take(key)?.free();
  rates.take(key)?.free();
}

const tasks: { [K in TaskName]: Task<K> } = {
  tile: ({ rate, pieces, height, width, marked, partial, countBits }) =>
    rates.get(rate).decodeTile(pieces, height, width, marked, partial, countBits),
  window: ({ synthesis, yHat, window, inner, grey }) =>
    toRgba(syntheses.get(synthesis).paint(yHat, window, inner), grey),
  preview: ({ previews: key, yHat, window, inner, scale, grey }) =>
    toRgba(previews.get(key).paint(yHat, window, inner, scale), grey),
  piece: async ({ webp, data, piece, part, hasAlpha }) => {
    const decoder = await lossless.get(webp);
    return cropped(decoder.decode(data, widthOf(piece), heightOf(piece), hasAlpha), piece, part);
  },
  alpha: async ({ webp, data, piece, part, filter, scale }) => {
    const decoder = await lossless.get(webp);
    const samples = decoder.decode(data, widthOf(piece), heightOf(piece), false);
    undoFilter(samples, widthOf(piece), filter);
    const plane = alphaOf(cropped(samples, piece, part));
    return scale === 1 ? plane : blockMeans(plane, widthOf(part), heightOf(part), scale);
  },
  shrunkPiece: async ({ webp, data, piece, part, small, place, scale, mask }) => {
    const decoder = await lossless.get(webp);
    const samples = decoder.decode(data, widthOf(piece), heightOf(piece), false);
    layOverScaled(small, place, cropped(samples, piece, part), part, scale, mask);
    return small;
  },
  resample: ({ samples, width, height, outWidth, outHeight, part, hasAlpha }) => {
    const resample = hasAlpha ? lanczosWithAlpha : lanczos;
    return resample(samples, width, height, outWidth, outHeight, part ?? undefined);
  },
  srgb: ({ samples, width, height, icc }) => toSrgb(samples, width, height, icc),
};

/** RGBA samples of RGB samples, grey where the picture is. */
function toRgba(rgb: Uint8Array, grey: boolean): Rgba {
  const out = new Uint8ClampedArray((rgb.length / 3) * 4);
  for (let from = 0, to = 0; from < rgb.length; from += 3, to += 4) {
    let [r, g, b] = [rgb[from]!, rgb[from + 1]!, rgb[from + 2]!];
    if (grey) r = g = b = Math.floor((r + g + b + 1) / 3);
    out[to] = r;
    out[to + 1] = g;
    out[to + 2] = b;
    out[to + 3] = 255;
  }
  return out;
}

/** The alpha of RGBA samples. */
function alphaOf(samples: Rgba): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(samples.length / 4);
  for (let i = 0; i < out.length; i++) out[i] = samples[4 * i + 3]!;
  return out;
}

async function runTask<K extends TaskName>(name: K, input: Tasks[K]["input"]): Promise<void> {
  try {
    const result = await tasks[name](input);
    reply({ result }, buffersOf(result));
  } catch (error) {
    reply({ error: sentError(error), fatal: !(error instanceof RankpressError) });
  }
}

function buffersOf(result: Tasks[TaskName]["result"]): ArrayBuffer[] {
  if (!("yHat" in result)) return [result.buffer];
  return result.bits === null ? [result.yHat.buffer] : [result.yHat.buffer, result.bits.buffer];
}

function reply(message: Reply, transfer: ArrayBuffer[] = []): void {
  scope.postMessage(message, transfer);
}

scope.addEventListener("message", ({ data: request }: MessageEvent<Request>) => {
  if (request.kind === "start") core = Core.create(request.kernels);
  else if (request.kind === "resource") addResource(request.resource);
  else if (request.kind === "drop") dropResource(request.key);
  else void runTask(request.name, request.input);
});
