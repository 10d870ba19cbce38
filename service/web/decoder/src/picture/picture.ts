/**
 * Decodes one picture with a pool of workers: tiles, windows and pieces are its units of work.
 *
 * Latents and pixels flow at the same time: a window is painted as soon as the tiles under it are
 * decoded, before further tiles are.
 */

import { withSignal } from "../abort.js";
import { UnsupportedStream } from "../errors.js";
import type { Resource, Rgba, WindowInput } from "../pool/messages.js";
import type { TaskOptions, WorkerPool } from "../pool/pool.js";
import { covers } from "../stream/graphics.js";
import { readStream, type Header, type Stream } from "../stream/stream.js";
import {
  areaOf,
  balancedWindows,
  cells,
  heightOf,
  latentBox,
  PATCH,
  relative,
  scaled,
  TILE,
  tiles,
  widthOf,
  type Box,
  type Scale,
} from "../stream/tiles.js";
import type { BitMap, DecodeOptions } from "../types.js";
import type { Mix } from "../weights/weight-index.js";
import { rateKey, type WeightStore } from "../weights/weights.js";
import { isSrgb } from "./color.js";
import { decodeTile, LatentReader, type LatentOptions } from "./latents.js";
import { layAlpha, layGraphics, shrinkGraphics, type PieceContext } from "./overlays.js";
import { PixelBuffer } from "./pixels.js";
import type { Edges } from "./resample.js";
import { checkPixels, fit, scaleOf, viewedPixels } from "./view.js";

/** Latents along the side of a window of the preview network, whose features stay in the cache. */
const PREVIEW_WINDOW = 32;

/** What all decodes share. */
export interface DecoderParts {
  pool: WorkerPool;
  weights: WeightStore;
  webp(signal: AbortSignal): Promise<Resource>;
  maxPixels: number;
}

/** Decodes a picture; see Decoder.decode. */
export function decodePicture(
  parts: DecoderParts,
  bytes: Uint8Array,
  options: DecodeOptions,
): Promise<ImageData> {
  return withSignal(options.signal, (signal) =>
    new PictureDecode(parts, bytes, options, signal).picture(),
  );
}

/** Counts the bits of a picture; see Decoder.bits. */
export function countBits(
  parts: DecoderParts,
  bytes: Uint8Array,
  options: Pick<DecodeOptions, "partial" | "signal">,
): Promise<BitMap> {
  return withSignal(options.signal, (signal) =>
    new PictureDecode(parts, bytes, options, signal).bits(),
  );
}

/** A network that paints windows of latents. */
interface Painter {
  /** Model, rate, and the network. */
  resources: Resource[];
  /** Latents around a window that it reads. */
  halo: number;
  paint(input: WindowInput, options: TaskOptions): Promise<Rgba>;
}

/** Of a picture, in pixels. */
interface Size {
  width: number;
  height: number;
}

class PictureDecode {
  private readonly stream: Stream;
  private readonly pixels: Box;
  private readonly context: PieceContext;

  constructor(
    private readonly parts: DecoderParts,
    bytes: Uint8Array,
    private readonly options: DecodeOptions,
    private readonly signal: AbortSignal,
  ) {
    const checkHeader = ({ sameMachine, width, height }: Header): void => {
      if (sameMachine) {
        throw new UnsupportedStream("only the machine that made the stream can decode it");
      }
      checkPixels(parts.maxPixels, width, height);
      viewedPixels(options, width, height);
    };
    // A copy: the caller may reuse or give away the bytes before they are all read.
    this.stream = readStream(bytes.slice(), { partial: options.partial, checkHeader });
    const { width, height } = this.stream.header;
    this.pixels = viewedPixels(options, width, height);
    this.context = { pool: parts.pool, webp: parts.webp, signal, width, height };
  }

  async picture(): Promise<ImageData> {
    const { graphics } = this.stream;
    const isCovered = graphics !== null && covers(graphics.mask, this.pixels);
    const scale = isCovered ? 1 : await this.scale();
    const box = cells(this.pixels, scale);
    const buffer = new PixelBuffer(box);
    if (!isCovered) await this.paint(buffer, scale);
    if (graphics !== null) {
      if (scale === 1) await layGraphics(this.context, graphics, buffer);
      else await shrinkGraphics(this.context, graphics, buffer, scale);
    }
    if (this.stream.alpha !== null) await layAlpha(this.context, this.stream.alpha, buffer, scale);
    if (this.hasAlpha) buffer.clearHidden();
    const size = fit(this.options, this.pixels);
    const sized = await this.resampled(buffer, scale, size);
    return new ImageData(await this.coloured(sized, size), size.width, size.height);
  }

  async bits(): Promise<BitMap> {
    const { graphics, header } = this.stream;
    const box = latentBox(header.width, header.height);
    const out: BitMap = {
      width: widthOf(box),
      height: heightOf(box),
      bits: new Float32Array(areaOf(box)),
      marked: graphics?.mask.marked ?? new Uint8Array(areaOf(box)),
    };
    if (graphics?.isComplete) return out;
    const { pool, weights } = this.parts;
    const mix = await weights.find(header, this.signal);
    const resources = await weights.rate(mix, this.signal);
    const options = { ...this.latentOptions(mix, resources), countBits: true };
    const decodeOne = async (tile: Box, index: number): Promise<void> => {
      const { bits } = await decodeTile(pool, this.stream, tile, index, options);
      for (let y = 0; y < heightOf(tile); y++) {
        const row = bits!.subarray(y * widthOf(tile), (y + 1) * widthOf(tile));
        out.bits.set(row, (tile.top + y) * out.width + tile.left);
      }
    };
    await Promise.all(tiles(box).map(decodeOne));
    return out;
  }

  private get hasAlpha(): boolean {
    return this.stream.alpha !== null || (this.stream.graphics?.hasAlpha ?? false);
  }

  /**
   * The scale at which the networks decode the view.
   *
   * A layer over a picture with alpha is not shrunk by itself: it is black where alpha hides it,
   * and this must not be mixed into what shows.
   */
  private async scale(): Promise<Scale | 1> {
    const scale = scaleOf(this.options, this.pixels);
    if (scale === 1 || (this.stream.graphics !== null && this.hasAlpha)) return 1;
    const { model } = await this.parts.weights.find(this.stream.header, this.signal);
    return model.previews === null ? 1 : scale;
  }

  /** Decodes the pixels of a buffer by the networks, window by window. */
  private async paint(buffer: PixelBuffer, scale: Scale | 1): Promise<void> {
    const { pool, weights } = this.parts;
    const mix = await weights.find(this.stream.header, this.signal);
    const painter = await this.painter(mix, scale);
    const { resources, halo } = painter;
    pool.prepare(resources);
    const windows = this.windows(scale, halo);
    const latents = { ...this.latentOptions(mix, resources), channels: mix.model.sizes.M };
    const reader = new LatentReader(pool, this.stream, windows, halo, latents);
    const paintOne = async (inner: Box, index: number): Promise<void> => {
      const window = reader.windows[index]!;
      const yHat = await reader.read(window);
      const input = {
        yHat,
        window: { height: heightOf(window), width: widthOf(window) },
        inner: relative(inner, window),
        grey: this.stream.header.grey,
      };
      const options = { resources, signal: this.signal, transfer: [yHat.buffer], urgent: true };
      buffer.put(await painter.paint(input, options), scaled(inner, PATCH / scale));
    };
    await Promise.all(windows.map(paintOne));
  }

  /** The network that paints at 1/scale of the size. */
  private async painter(mix: Mix, scale: Scale | 1): Promise<Painter> {
    const { pool, weights } = this.parts;
    if (scale === 1) {
      const [rate, synthesis] = await Promise.all([
        weights.rate(mix, this.signal),
        weights.synthesis(mix, this.stream, this.signal),
      ]);
      return {
        resources: [...rate, synthesis],
        halo: Math.ceil(mix.model.sizes.nd8 / 2) + mix.model.sizes.nd16,
        paint: (input, options) =>
          pool.run("window", { ...input, synthesis: synthesis.key }, options),
      };
    }
    const [rate, previews] = await Promise.all([
      weights.rate(mix, this.signal),
      weights.previews(mix, this.signal),
    ]);
    const { key } = previews.resource;
    return {
      resources: [...rate, previews.resource],
      halo: previews.halo,
      paint: (input, options) => pool.run("preview", { ...input, previews: key, scale }, options),
    };
  }

  /** Windows of the latents under the view. */
  private windows(scale: Scale | 1, halo: number): Box[] {
    const box = latentBox(this.stream.header.width, this.stream.header.height);
    const under = cells(this.pixels, PATCH);
    const most = scale === 1 ? TILE : PREVIEW_WINDOW;
    return balancedWindows(under, halo, most, this.parts.pool.size, box);
  }

  private latentOptions(mix: Mix, resources: readonly Resource[]): LatentOptions {
    const { signal } = this;
    const partial = this.options.partial ?? false;
    return { rate: rateKey(mix), resources, partial, countBits: false, signal };
  }

  /** The samples at the size of the view. */
  private async resampled(buffer: PixelBuffer, scale: number, size: Size): Promise<Rgba> {
    const { pixels, hasAlpha, signal } = this;
    const { box, samples, width, height } = buffer;
    if (scale === 1 && width === size.width && height === size.height) return samples;
    const part: Edges = [
      pixels.left / scale - box.left,
      pixels.top / scale - box.top,
      pixels.right / scale - box.left,
      pixels.bottom / scale - box.top,
    ];
    const { width: outWidth, height: outHeight } = size;
    const input = { samples, width, height, outWidth, outHeight, part, hasAlpha };
    return this.parts.pool.run("resample", input, {
      resources: [],
      signal,
      transfer: [samples.buffer],
    });
  }

  /** The samples in sRGB, unless raw ones are asked for. */
  private async coloured(samples: Rgba, { width, height }: Size): Promise<Rgba> {
    const { icc } = this.stream;
    if (icc === null || this.options.raw || isSrgb(icc)) return samples;
    const input = { samples, width, height, icc };
    const transfer = [samples.buffer];
    return this.parts.pool.run("srgb", input, { resources: [], signal: this.signal, transfer });
  }
}
