/**
 * Layers of the entropy networks, in exact integers.
 *
 * Activations are int16 (±1023), weights int16, sums int32: the bound on a layer's weights keeps
 * every sum below 2^24. Such a sum is exact in float32, too, which shifts and rounds it: the scale
 * of a row is 2^-shift. Positions lie `stride` bytes apart; a row of them is what is worked on.
 */

import {
  LAYER,
  LEAKY,
  PLAIN,
  RESIDUAL,
  biasesOf,
  inputsOf,
  outputsOf,
  scalesOf,
  weightsOf,
} from "./layer";
import { GROUP, highSums, lowSums, multiply } from "./products";
import { nearestIntegers } from "./rounding";

/** Largest absolute activation. */
const ACTIVATION_MAX: f32 = 1023;

/** A linear layer: `count` positions of K int16 at `a` -> N int16 each at `out`, in low…high. */
export function linear(
  layer: usize,
  a: usize,
  aStride: usize,
  count: i32,
  out: usize,
  outStride: usize,
  kind: i32,
  low: f32,
  high: f32,
): void {
  const k = inputsOf(layer);
  const n = outputsOf(layer);
  const lows = f32x4.splat(low);
  const highs = f32x4.splat(high);
  const last = count - 1;
  let weights = weightsOf(layer);
  let biases = biasesOf(layer);
  let scales = scalesOf(layer);
  for (let o: usize = 0; o < n; o += 8) {
    for (let i = 0; i < count; i += GROUP) {
      const from = a + <usize>i * aStride;
      const past = <usize>(last - i);
      const from1 = from + min<usize>(1, past) * aStride;
      const from2 = from + min<usize>(2, past) * aStride;
      const from3 = from + min<usize>(3, past) * aStride;
      multiply(weights, k, from, from1, from2, from3);
      const to = out + <usize>i * outStride;
      const to1 = to + min<usize>(1, past) * outStride;
      const to2 = to + min<usize>(2, past) * outStride;
      const to3 = to + min<usize>(3, past) * outStride;
      // All are computed before one is stored: the last ones may be the same position.
      const r0 = ended(0, biases, scales, kind, to, lows, highs);
      const r1 = ended(1, biases, scales, kind, to1, lows, highs);
      const r2 = ended(2, biases, scales, kind, to2, lows, highs);
      const r3 = ended(3, biases, scales, kind, to3, lows, highs);
      v128.store(to, r0);
      v128.store(to1, r1);
      v128.store(to2, r2);
      v128.store(to3, r3);
    }
    weights += k * 16;
    biases += 32;
    scales += 32;
    out += 16;
  }
}

/** Outputs of a position of the last product. */
@inline
function ended(
  position: i32,
  biases: usize,
  scales: usize,
  kind: i32,
  out: usize,
  low: v128,
  high: v128,
): v128 {
  const s0 = i32x4.add(lowSums(position), v128.load(biases));
  const s1 = i32x4.add(highSums(position), v128.load(biases, 16));
  return rounded(s0, s1, v128.load(scales), v128.load(scales, 16), kind, out, low, high);
}

/** Eight sums as int16: shifted, rounded down, clipped. */
@inline
function rounded(
  s0: v128,
  s1: v128,
  scale0: v128,
  scale1: v128,
  kind: i32,
  out: usize,
  low: v128,
  high: v128,
): v128 {
  let f0 = f32x4.mul(f32x4.convert_i32x4_s(s0), scale0);
  let f1 = f32x4.mul(f32x4.convert_i32x4_s(s1), scale1);
  if (kind == LEAKY) {
    const leak = f32x4.splat(0.125);
    f0 = f32x4.pmax(f0, f32x4.mul(f0, leak));
    f1 = f32x4.pmax(f1, f32x4.mul(f1, leak));
  }
  f0 = f32x4.floor(f0);
  f1 = f32x4.floor(f1);
  if (kind == RESIDUAL) {
    const skip = v128.load(out);
    f0 = f32x4.add(f0, f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(skip)));
    f1 = f32x4.add(f1, f32x4.convert_i32x4_s(i32x4.extend_high_i16x8_s(skip)));
  }
  return i16x8.narrow_i32x4_s(integer(f0, low, high), integer(f1, low, high));
}

/** Whole numbers in float32, clipped, as int32. */
@inline
function integer(f: v128, low: v128, high: v128): v128 {
  return nearestIntegers(f32x4.pmin(f32x4.pmax(f, low), high));
}

/**
 * A depthwise 3×3 layer: three rows of `count` positions of C int16 -> one row.
 *
 * Weights are [C/8][5][8][2]: the taps in pairs, the tenth of them 0.
 */
function depthwise(
  layer: usize,
  above: usize,
  here: usize,
  below: usize,
  count: i32,
  out: usize,
): void {
  const c = outputsOf(layer);
  const stride = c * 2;
  const low = f32x4.splat(-ACTIVATION_MAX);
  const high = f32x4.splat(ACTIVATION_MAX);
  const last = <usize>(count - 1) * stride;
  const weights = weightsOf(layer);
  const biases = biasesOf(layer);
  const scales = scalesOf(layer);
  for (let i: usize = 0; i <= last; i += stride) {
    const left = i == 0 ? <usize>0 : i - stride;
    const right = i == last ? i : i + stride;
    let w = weights;
    for (let o: usize = 0; o < stride; o += 16) {
      let s0 = v128.load(biases + o * 2);
      let s1 = v128.load(biases + o * 2, 16);
      let x = v128.load(above + left + o);
      let y = v128.load(above + i + o);
      s0 = i32x4.add(s0, i32x4.dot_i16x8_s(lowPairs(x, y), v128.load(w)));
      s1 = i32x4.add(s1, i32x4.dot_i16x8_s(highPairs(x, y), v128.load(w, 16)));
      x = v128.load(above + right + o);
      y = v128.load(here + left + o);
      s0 = i32x4.add(s0, i32x4.dot_i16x8_s(lowPairs(x, y), v128.load(w, 32)));
      s1 = i32x4.add(s1, i32x4.dot_i16x8_s(highPairs(x, y), v128.load(w, 48)));
      x = v128.load(here + i + o);
      y = v128.load(here + right + o);
      s0 = i32x4.add(s0, i32x4.dot_i16x8_s(lowPairs(x, y), v128.load(w, 64)));
      s1 = i32x4.add(s1, i32x4.dot_i16x8_s(highPairs(x, y), v128.load(w, 80)));
      x = v128.load(below + left + o);
      y = v128.load(below + i + o);
      s0 = i32x4.add(s0, i32x4.dot_i16x8_s(lowPairs(x, y), v128.load(w, 96)));
      s1 = i32x4.add(s1, i32x4.dot_i16x8_s(highPairs(x, y), v128.load(w, 112)));
      x = v128.load(below + right + o);
      y = i32x4.splat(0);
      s0 = i32x4.add(s0, i32x4.dot_i16x8_s(lowPairs(x, y), v128.load(w, 128)));
      s1 = i32x4.add(s1, i32x4.dot_i16x8_s(highPairs(x, y), v128.load(w, 144)));
      const scale0 = v128.load(scales + o * 2);
      const scale1 = v128.load(scales + o * 2, 16);
      v128.store(out + i + o, rounded(s0, s1, scale0, scale1, PLAIN, 0, low, high));
      w += 160;
    }
  }
}

/** Lanes 0 to 3 of two vectors of int16 in turn. */
@inline
function lowPairs(x: v128, y: v128): v128 {
  return v128.shuffle<i16>(x, y, 0, 8, 1, 9, 2, 10, 3, 11);
}

/** Lanes 4 to 7 of two vectors of int16 in turn. */
@inline
function highPairs(x: v128, y: v128): v128 {
  return v128.shuffle<i16>(x, y, 4, 12, 5, 13, 6, 14, 7, 15);
}

/**
 * A residual block, in place on [height, width] positions of C int16, row by row.
 *
 * `scratch` has room for 6 rows of width · C int16: three of what the depthwise layer reads, one of
 * what it gives, and two of the hidden activations.
 */
export function block(
  layers: usize,
  x: usize,
  stride: usize,
  height: i32,
  width: i32,
  scratch: usize,
): void {
  const low = -ACTIVATION_MAX;
  const high = ACTIVATION_MAX;
  const dw = layers + LAYER;
  const inner = outputsOf(layers) * 2;
  const row = <usize>width * inner;
  const spread = scratch + 3 * row;
  const hidden = scratch + 4 * row;
  linear(layers, x, stride, width, scratch, inner, LEAKY, low, high);
  for (let r = 0; r < height; r++) {
    const here = x + <usize>r * <usize>width * stride;
    const next = min(r + 1, height - 1);
    if (next > r) {
      const ahead = x + <usize>next * <usize>width * stride;
      const place = scratch + <usize>(next % 3) * row;
      linear(layers, ahead, stride, width, place, inner, LEAKY, low, high);
    }
    depthwise(
      dw,
      scratch + <usize>(max(r - 1, 0) % 3) * row,
      scratch + <usize>(r % 3) * row,
      scratch + <usize>(next % 3) * row,
      width,
      spread,
    );
    linear(layers + 2 * LAYER, spread, inner, width, here, stride, RESIDUAL, low, high);
    linear(layers + 3 * LAYER, here, stride, width, hidden, 2 * inner, LEAKY, low, high);
    linear(layers + 4 * LAYER, hidden, 2 * inner, width, here, stride, RESIDUAL, low, high);
  }
}

/**
 * Symbols of `count` positions -> latents and context, for one channel group of `channels`.
 *
 * mu and symbols are [count, channels] int16; steps int32 and scales float32, [channels]. The
 * latents, clip(mu + ((symbol · step + 128) >> 8), 32767), go to `y`; clip(floor(latent · scale +
 * 1/2), 1023) goes to `context`.
 */
export function reconstruct(
  mu: usize,
  symbols: usize,
  count: i32,
  channels: usize,
  steps: usize,
  scales: usize,
  y: usize,
  yStride: usize,
  context: usize,
  contextStride: usize,
): void {
  const low = f32x4.splat(-ACTIVATION_MAX);
  const high = f32x4.splat(ACTIVATION_MAX);
  const yLow = i32x4.splat(-32767);
  const yHigh = i32x4.splat(32767);
  for (let i = 0; i < count; i++) {
    for (let c: usize = 0; c < channels; c += 8) {
      const m = v128.load(mu + 2 * c);
      const s = v128.load(symbols + 2 * c);
      let y0 = times(i32x4.extend_low_i16x8_s(s), v128.load(steps + 4 * c));
      let y1 = times(i32x4.extend_high_i16x8_s(s), v128.load(steps + 4 * c, 16));
      y0 = i32x4.add(y0, i32x4.extend_low_i16x8_s(m));
      y1 = i32x4.add(y1, i32x4.extend_high_i16x8_s(m));
      y0 = i32x4.min_s(i32x4.max_s(y0, yLow), yHigh);
      y1 = i32x4.min_s(i32x4.max_s(y1, yLow), yHigh);
      v128.store(y + 2 * c, i16x8.narrow_i32x4_s(y0, y1));
      const c0 = scaled(y0, v128.load(scales + 4 * c));
      const c1 = scaled(y1, v128.load(scales + 4 * c, 16));
      v128.store(
        context + 2 * c,
        i16x8.narrow_i32x4_s(integer(c0, low, high), integer(c1, low, high)),
      );
    }
    mu += 2 * channels;
    symbols += 2 * channels;
    y += yStride;
    context += contextStride;
  }
}

/** symbol · step, rounded to drop 8 bits. */
@inline
function times(symbols: v128, steps: v128): v128 {
  return i32x4.shr_s(i32x4.add(i32x4.mul(symbols, steps), i32x4.splat(128)), 8);
}

/** floor(y · scale + 1/2). */
@inline
function scaled(y: v128, scale: v128): v128 {
  const product = f32x4.mul(f32x4.convert_i32x4_s(y), scale);
  return f32x4.floor(f32x4.add(product, f32x4.splat(0.5)));
}

/**
 * Symbols of z -> z_hat: [count, channels] int16 in ±1023, in place; steps are [channels] int32.
 */
export function dequantise(z: usize, count: i32, channels: usize, steps: usize): void {
  const low = i32x4.splat(-1023);
  const high = i32x4.splat(1023);
  for (let i = 0; i < count; i++) {
    for (let c: usize = 0; c < channels; c += 8) {
      const s = v128.load(z + 2 * c);
      const z0 = times(i32x4.extend_low_i16x8_s(s), v128.load(steps + 4 * c));
      const z1 = times(i32x4.extend_high_i16x8_s(s), v128.load(steps + 4 * c, 16));
      v128.store(
        z + 2 * c,
        i16x8.narrow_i32x4_s(
          i32x4.min_s(i32x4.max_s(z0, low), high),
          i32x4.min_s(i32x4.max_s(z1, low), high),
        ),
      );
    }
    z += 2 * channels;
  }
}

/** Latents by channel group, [count, 4, channels] int16 -> [count, m]: i of group g is 4·i + g. */
export function interleave(
  groups: usize,
  count: usize,
  channels: usize,
  out: usize,
  m: usize,
): void {
  const group = channels * 2;
  for (let i: usize = 0; i < count; i++) {
    for (let c: usize = 0; c < m / 4; c++) {
      store<u16>(out, load<u16>(groups + c * 2));
      store<u16>(out, load<u16>(groups + group + c * 2), 2);
      store<u16>(out, load<u16>(groups + 2 * group + c * 2), 4);
      store<u16>(out, load<u16>(groups + 3 * group + c * 2), 6);
      out += 8;
    }
    groups += 4 * group;
  }
}
