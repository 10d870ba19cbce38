/**
 * Pieces of lossless pictures: lossless WebP without its file header, decoded by libwebp.
 *
 * The 25 bytes before the coded pixels are written again from the size that the stream's header
 * declares, so libwebp is never asked for other pixels than those. No canvas is involved: browsers
 * do not give exact samples back from one.
 */

import startWebp, { type WebPModule } from "@jsquash/webp/codec/dec/webp_dec.js";
import { BadStream } from "../errors.js";
import { heightOf, relative, widthOf, type Box } from "../stream/tiles.js";

const SIGNATURE = 0x2f;

/** libwebp's decoder. */
export class LosslessDecoder {
  private constructor(private readonly webp: WebPModule) {}

  static async create(module: WebAssembly.Module): Promise<LosslessDecoder> {
    const instantiateWasm = (
      imports: WebAssembly.Imports,
      callback: (instance: WebAssembly.Instance) => void,
    ): WebAssembly.Exports => {
      const instance = new WebAssembly.Instance(module, imports);
      callback(instance);
      return instance.exports;
    };
    return new LosslessDecoder(await startWebp({ noInitialRun: true, instantiateWasm }));
  }

  /**
   * Decodes the coded pixels of a piece.
   *
   * @param data as the stream holds them.
   * @param width pixels, at most 16384. @param height pixels, at most 16384.
   * @param hasAlpha whether alpha is coded too; without, it is 255.
   * @returns RGBA samples. Raises BadStream where the bytes are no picture of that size.
   */
  decode(
    data: Uint8Array,
    width: number,
    height: number,
    hasAlpha: boolean,
  ): Uint8ClampedArray<ArrayBuffer> {
    const image = this.webp.decode(fileOf(data, width, height, hasAlpha));
    if (image === null || image.width !== width || image.height !== height) {
      throw new BadStream(`${data.length} bytes are no lossless picture of ${width}x${height}`);
    }
    return image.data as Uint8ClampedArray<ArrayBuffer>;
  }
}

/** A WebP file of coded pixels. */
function fileOf(
  data: Uint8Array,
  width: number,
  height: number,
  hasAlpha: boolean,
): Uint8Array<ArrayBuffer> {
  const chunk = data.length + 5;
  const size = 20 + chunk + (chunk % 2);
  const file = new Uint8Array(size);
  const view = new DataView(file.buffer);
  file.set(new TextEncoder().encode("RIFF????WEBPVP8L"));
  view.setUint32(4, size - 8, true);
  view.setUint32(16, chunk, true);
  file[20] = SIGNATURE;
  view.setUint32(21, (width - 1) | ((height - 1) << 14) | (hasAlpha ? 1 << 28 : 0), true);
  file.set(data, 25);
  return file;
}

/**
 * The samples of a part of a piece.
 *
 * @param samples RGBA samples of the pixels in `piece`. @param part lies inside `piece`.
 */
export function cropped(
  samples: Uint8ClampedArray<ArrayBuffer>,
  piece: Box,
  part: Box,
): Uint8ClampedArray<ArrayBuffer> {
  if (widthOf(part) === widthOf(piece) && heightOf(part) === heightOf(piece)) return samples;
  const place = relative(part, piece);
  const row = 4 * widthOf(part);
  const out = new Uint8ClampedArray(row * heightOf(part));
  for (let y = 0; y < heightOf(part); y++) {
    const start = 4 * ((place.top + y) * widthOf(piece) + place.left);
    out.set(samples.subarray(start, start + row), y * row);
  }
  return out;
}
