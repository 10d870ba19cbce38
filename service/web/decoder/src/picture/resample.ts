/**
 * Smaller pictures as Pillow makes them: Lanczos in two passes with 8-bit samples between them,
 * colours weighted by alpha; and means of square blocks.
 *
 * Weights are integers in units of 2^-22, made from float64 as in Pillow's Resample.c, so the
 * result is the same sample for sample.
 */

const PRECISION = 22;
const RADIUS = 3;

/** Left, top, right and bottom edge of a part of a picture, in its pixels; whole numbers or not. */
export type Edges = readonly [number, number, number, number];

/**
 * Resamples RGBA samples of width × height pixels, without regard to alpha: each channel alone.
 *
 * @param part the part to resample; by default the whole.
 */
export function lanczos(
  samples: Uint8ClampedArray<ArrayBuffer>,
  width: number,
  height: number,
  outWidth: number,
  outHeight: number,
  part: Edges = [0, 0, width, height],
): Uint8ClampedArray<ArrayBuffer> {
  const [left, top, right, bottom] = part;
  const columns = weightsOf(width, left, right, outWidth);
  const rows = weightsOf(height, top, bottom, outHeight);
  const needsColumns = outWidth !== width || left !== 0 || right !== width;
  const needsRows = outHeight !== height || top !== 0 || bottom !== height;
  const wide = needsColumns ? acrossRows(samples, width, height, columns) : samples;
  return needsRows ? acrossColumns(wide, outWidth, rows) : wide;
}

/** Resamples as `lanczos` does, colours weighted by alpha; where that is 0, they are 0. */
export function lanczosWithAlpha(
  samples: Uint8ClampedArray<ArrayBuffer>,
  width: number,
  height: number,
  outWidth: number,
  outHeight: number,
  part?: Edges,
): Uint8ClampedArray<ArrayBuffer> {
  premultiply(samples);
  const out = lanczos(samples, width, height, outWidth, outHeight, part);
  for (let i = 0; i < out.length; i += 4) {
    const alpha = out[i + 3]!;
    if (alpha === 255) continue;
    for (let c = i; c < i + 3; c++) out[c] = alpha === 0 ? 0 : Math.floor((255 * out[c]!) / alpha);
  }
  return out;
}

/** Means of blocks of side × side samples of one channel; those at the edges are cut. */
export function blockMeans(
  plane: Uint8Array,
  width: number,
  height: number,
  side: number,
): Uint8Array<ArrayBuffer> {
  const columns = Math.ceil(width / side);
  const rows = Math.ceil(height / side);
  const out = new Uint8Array(columns * rows);
  for (let row = 0; row < rows; row++) {
    const [top, bottom] = [row * side, Math.min(height, (row + 1) * side)];
    for (let column = 0; column < columns; column++) {
      const [left, right] = [column * side, Math.min(width, (column + 1) * side)];
      let sum = 0;
      for (let y = top; y < bottom; y++) {
        for (let x = left; x < right; x++) sum += plane[y * width + x]!;
      }
      const count = (bottom - top) * (right - left);
      const reciprocal = Math.floor(2 ** 24 / count);
      out[row * columns + column] = Math.floor(((sum + (count >> 1)) * reciprocal) / 2 ** 24);
    }
  }
  return out;
}

/** For each sample of the result, where it begins to read and the weights of what it reads. */
interface Weights {
  starts: Int32Array;
  weights: Int32Array[];
}

function weightsOf(size: number, begin: number, end: number, outSize: number): Weights {
  const scale = (end - begin) / outSize;
  const stretch = Math.max(1, scale);
  const support = RADIUS * stretch;
  const starts = new Int32Array(outSize);
  const weights: Int32Array[] = [];
  for (let i = 0; i < outSize; i++) {
    const centre = begin + (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(size, Math.trunc(centre + support + 0.5));
    const exact: number[] = [];
    let total = 0;
    for (let x = first; x < last; x++) {
      const weight = lanczosAt((x - centre + 0.5) * (1 / stretch));
      exact.push(weight);
      total += weight;
    }
    starts[i] = first;
    weights.push(Int32Array.from(exact, (weight) => fixed(total === 0 ? weight : weight / total)));
  }
  return { starts, weights };
}

function lanczosAt(x: number): number {
  return x >= -RADIUS && x < RADIUS ? sinc(x) * sinc(x / RADIUS) : 0;
}

function sinc(x: number): number {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}

function fixed(weight: number): number {
  return Math.trunc((weight < 0 ? -0.5 : 0.5) + weight * 2 ** PRECISION);
}

function acrossRows(
  samples: Uint8ClampedArray,
  width: number,
  height: number,
  { starts, weights }: Weights,
): Uint8ClampedArray<ArrayBuffer> {
  const half = 2 ** (PRECISION - 1);
  const outWidth = starts.length;
  const out = new Uint8ClampedArray(4 * outWidth * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < outWidth; x++) {
      const row = weights[x]!;
      let at = 4 * (y * width + starts[x]!);
      let [r, g, b, a] = [half, half, half, half];
      for (let i = 0; i < row.length; i++, at += 4) {
        const weight = row[i]!;
        r += samples[at]! * weight;
        g += samples[at + 1]! * weight;
        b += samples[at + 2]! * weight;
        a += samples[at + 3]! * weight;
      }
      const to = 4 * (y * outWidth + x);
      out[to] = r >> PRECISION;
      out[to + 1] = g >> PRECISION;
      out[to + 2] = b >> PRECISION;
      out[to + 3] = a >> PRECISION;
    }
  }
  return out;
}

function acrossColumns(
  samples: Uint8ClampedArray,
  width: number,
  { starts, weights }: Weights,
): Uint8ClampedArray<ArrayBuffer> {
  const stride = 4 * width;
  const out = new Uint8ClampedArray(stride * starts.length);
  const sums = new Float64Array(stride);
  for (let y = 0; y < starts.length; y++) {
    sums.fill(2 ** (PRECISION - 1));
    weights[y]!.forEach((weight, i) => {
      const from = (starts[y]! + i) * stride;
      for (let x = 0; x < stride; x++) sums[x]! += samples[from + x]! * weight;
    });
    for (let x = 0; x < stride; x++) out[y * stride + x] = sums[x]! >> PRECISION;
  }
  return out;
}

/** Multiplies colours by alpha as Pillow does, in place. */
function premultiply(samples: Uint8ClampedArray): void {
  for (let i = 0; i < samples.length; i += 4) {
    const alpha = samples[i + 3]!;
    if (alpha === 255) continue;
    for (let c = i; c < i + 3; c++) {
      const product = samples[c]! * alpha + 128;
      samples[c] = ((product >> 8) + product) >> 8;
    }
  }
}
