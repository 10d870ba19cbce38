/** The RGBA samples of a box of pixels, filled part by part. */

import { RankpressError } from "../errors.js";
import type { Rgba } from "../pool/messages.js";
import { areaOf, cut, heightOf, relative, widthOf, type Box } from "../stream/tiles.js";

export class PixelBuffer {
  private rgba: Rgba | null = null;

  /** @param box of the pixels. Memory is taken once the first of them are there. */
  constructor(readonly box: Box) {}

  get width(): number {
    return widthOf(this.box);
  }

  get height(): number {
    return heightOf(this.box);
  }

  /** All samples. Raises RankpressError where there is no memory for them. */
  get samples(): Rgba {
    this.rgba ??= allocated(4 * areaOf(this.box));
    return this.rgba;
  }

  set samples(samples: Rgba) {
    this.rgba = samples;
  }

  /** Takes the samples of a box; what lies outside is left out. */
  put(samples: Rgba, box: Box): void {
    const common = cut(box, this.box);
    const [source, target] = [relative(common, box), relative(common, this.box)];
    const bytes = 4 * widthOf(common);
    for (let y = 0; y < heightOf(common); y++) {
      const start = 4 * ((source.top + y) * widthOf(box) + source.left);
      const place = 4 * ((target.top + y) * this.width + target.left);
      this.samples.set(samples.subarray(start, start + bytes), place);
    }
  }

  /** The samples of a box inside. */
  part(box: Box): Rgba {
    const part = new PixelBuffer(box);
    part.put(this.samples, this.box);
    return part.samples;
  }

  /** Takes the alpha of a box inside. */
  putAlpha(plane: Uint8Array, box: Box): void {
    const place = relative(box, this.box);
    const samples = this.samples;
    let from = 0;
    for (let y = place.top; y < place.bottom; y++) {
      const row = 4 * (y * this.width) + 3;
      for (let x = place.left; x < place.right; x++) samples[row + 4 * x] = plane[from++]!;
    }
  }

  /** Clears the colours of pixels that alpha hides: they mean nothing. */
  clearHidden(): void {
    const pixels = new Uint32Array(this.samples.buffer);
    const alpha =
      new Uint8Array(new Uint32Array([0xff000000]).buffer)[3] === 255 ? 0xff000000 : 0xff;
    for (let i = 0; i < pixels.length; i++) if ((pixels[i]! & alpha) === 0) pixels[i] = 0;
  }
}

function allocated(bytes: number): Rgba {
  try {
    return new Uint8ClampedArray(bytes);
  } catch {
    throw new RankpressError(`there is no memory for a picture of ${bytes} bytes`);
  }
}
