/**
 * PSNR and MS-SSIM of two pictures, computed from their 8-bit samples as the Python package does.
 *
 * Pictures are RGBA as canvases have them, [height, width, 4]; the fourth sample is not looked at.
 * MS-SSIM is that of Wang, Simoncelli and Bovik 2003: the mean of three channels, five scales.
 */

/** Exponents of the five scales. */
const WEIGHTS = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333];
/** Side of the Gaussian window in pixels. */
const TAPS = 11;
/** Standard deviation of the Gaussian window in pixels. */
const SIGMA = 1.5;
/** Level that is subtracted from samples, so that float32 is precise enough for variances. */
const MIDDLE = 128;
const C1 = (0.01 * 255) ** 2;
const C2 = (0.03 * 255) ** 2;
/** Shortest side on which the window fits at every scale. */
export const MS_SSIM_SIDE = TAPS * 2 ** (WEIGHTS.length - 1);

const WINDOW = gaussian();

/** Samples of one channel. */
interface Plane {
  width: number;
  height: number;
  samples: Float32Array;
}

/** PSNR in dB; Infinity when all samples are equal. */
export function psnr(a: Uint8ClampedArray, b: Uint8ClampedArray): number {
  let sum = 0;
  for (let i = 0; i < a.length; i += 4) {
    const red = a[i]! - b[i]!;
    const green = a[i + 1]! - b[i + 1]!;
    const blue = a[i + 2]! - b[i + 2]!;
    sum += red * red + green * green + blue * blue;
  }
  return 10 * Math.log10((255 * 255 * (a.length / 4) * 3) / sum);
}

/** MS-SSIM of one channel, 0 to 2; null where a side is below MS_SSIM_SIDE. */
export function channelMsSsim(
  a: Uint8ClampedArray,
  b: Uint8ClampedArray,
  width: number,
  height: number,
  channel: number,
): number | null {
  if (Math.min(width, height) < MS_SSIM_SIDE) return null;
  let one = planeOf(a, width, height, channel);
  let other = planeOf(b, width, height, channel);
  let product = 1;
  WEIGHTS.forEach((weight, scale) => {
    const { similarity, structure } = means(one, other);
    const last = scale === WEIGHTS.length - 1;
    product *= Math.max(last ? similarity : structure, 0) ** weight;
    one = halve(one);
    other = halve(other);
  });
  return product;
}

/** The means over the picture of SSIM and of its contrast-structure part. */
function means(a: Plane, b: Plane): { similarity: number; structure: number } {
  const { width, height } = a;
  const inner = width - TAPS + 1;
  // Rows of the four blurred quantities: a, b, a² + b² and ab; as many as the window is high.
  const rows = Array.from({ length: TAPS }, () => new Float32Array(4 * inner));
  const squares = new Float32Array(width);
  const products = new Float32Array(width);
  const sums = new Float32Array(4 * inner);
  let similarity = 0;
  let structure = 0;
  for (let y = 0; y < height; y++) {
    const row = a.samples.subarray(y * width, (y + 1) * width);
    const otherRow = b.samples.subarray(y * width, (y + 1) * width);
    for (let x = 0; x < width; x++) {
      const p = row[x]!;
      const q = otherRow[x]!;
      squares[x] = p * p + q * q;
      products[x] = p * q;
    }
    const blurred = rows[y % TAPS]!;
    [row, otherRow, squares, products].forEach((line, part) =>
      blurRow(line, blurred.subarray(part * inner, (part + 1) * inner)),
    );
    if (y < TAPS - 1) continue;
    blurColumns(rows, y, sums);
    for (let x = 0; x < inner; x++) {
      const muA = sums[x]!;
      const muB = sums[inner + x]!;
      const variances = sums[2 * inner + x]! - muA * muA - muB * muB;
      const covariance = sums[3 * inner + x]! - muA * muB;
      const here = (2 * covariance + C2) / (variances + C2);
      const levelA = muA + MIDDLE;
      const levelB = muB + MIDDLE;
      const luminance = (2 * levelA * levelB + C1) / (levelA * levelA + levelB * levelB + C1);
      structure += here;
      similarity += luminance * here;
    }
  }
  const count = inner * (height - TAPS + 1);
  return { similarity: similarity / count, structure: structure / count };
}

/** Blur a row where the window fits. */
function blurRow(row: Float32Array, out: Float32Array): void {
  for (let x = 0; x < out.length; x++) {
    let sum = 0;
    for (let tap = 0; tap < TAPS; tap++) sum += WINDOW[tap]! * row[x + tap]!;
    out[x] = sum;
  }
}

/** Blur the columns of the rows that end with row y; row i is at i modulo the window's side. */
function blurColumns(rows: Float32Array[], y: number, out: Float32Array): void {
  out.fill(0);
  for (let tap = 0; tap < TAPS; tap++) {
    const row = rows[(y + 1 + tap) % TAPS]!;
    const weight = WINDOW[tap]!;
    for (let x = 0; x < out.length; x++) out[x]! += weight * row[x]!;
  }
}

function gaussian(): Float32Array {
  const places = Array.from({ length: TAPS }, (_, i) => i - (TAPS - 1) / 2);
  const heights = places.map((place) => Math.exp(-(place * place) / (2 * SIGMA * SIGMA)));
  const sum = heights.reduce((total, height) => total + height);
  return Float32Array.from(heights, (height) => height / sum);
}

function planeOf(rgba: Uint8ClampedArray, width: number, height: number, channel: number): Plane {
  const samples = new Float32Array(width * height);
  for (let i = 0; i < samples.length; i++) samples[i] = rgba[4 * i + channel]! - MIDDLE;
  return { width, height, samples };
}

/** The means of 2 × 2 pixels; an odd last row or column is left out. */
function halve(plane: Plane): Plane {
  const width = plane.width >> 1;
  const height = plane.height >> 1;
  const samples = new Float32Array(width * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const i = 2 * y * plane.width + 2 * x;
      const below = i + plane.width;
      const { samples: s } = plane;
      samples[y * width + x] = (s[i]! + s[i + 1]! + s[below]! + s[below + 1]!) / 4;
    }
  }
  return { width, height, samples };
}
