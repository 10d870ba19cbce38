/**
 * Layers of the synthesis and of the previews.
 *
 * Features are float32. The products of linear layers are those of int16: the inputs of each
 * position and the weights of each output are rounded in units of their own. No sum overflows,
 * because it is at most the product of the two norms (Cauchy and Schwarz), which is below 2^31. On
 * pictures 0.1 to 0.9 % of the samples differ by 1 from those of float32, and it takes half the time.
 *
 * As in integers.ts, positions lie `stride` bytes apart, and a row of them is what is worked on.
 * There are no fused multiply-adds, so the result is the same in every browser.
 */

import {
  LAYER,
  LEAKY,
  RESIDUAL,
  biasesOf,
  inputsOf,
  outputsOf,
  scalesOf,
  weightsOf,
} from "./layer";
import { GROUP, highSums, lowSums, multiply } from "./products";
import { nearestIntegers } from "./rounding";

/** Norms of rounded inputs and weights. What rounding adds, half a root of K, is left free. */
const INPUT_NORM: f32 = 32704;
const WEIGHT_NORM: f64 = 65472;

/** Norms are not taken as smaller, so that zeros have a unit. */
const SMALLEST_NORM: f32 = 1e-20;

/** Positions that are rounded at a time, and their rounded inputs and units. */
const CHUNK: i32 = 16;
const MAX_INPUTS: i32 = 8192;
const INPUTS: usize = memory.data(16 * 8192 * 2, 16);
const UNITS: usize = memory.data(16 * 4, 16);

/** A linear layer: `count` positions of K float32 (at most MAX_INPUTS) -> N float32 each. */
export function linearFloat(
  layer: usize,
  a: usize,
  aStride: usize,
  count: i32,
  out: usize,
  outStride: usize,
  kind: i32,
): void {
  for (; count > 0; count -= CHUNK) {
    linearChunk(layer, a, aStride, min(count, CHUNK), out, outStride, kind);
    a += <usize>CHUNK * aStride;
    out += <usize>CHUNK * outStride;
  }
}

/** `linearFloat` of at most CHUNK positions. */
function linearChunk(
  layer: usize,
  a: usize,
  aStride: usize,
  count: i32,
  out: usize,
  outStride: usize,
  kind: i32,
): void {
  const k = inputsOf(layer);
  const n = outputsOf(layer);
  const pitch = k * <usize>2;
  const last = count - 1;
  let weights = weightsOf(layer);
  let biases = biasesOf(layer);
  let scales = scalesOf(layer);
  for (let i = 0; i < count; i++) {
    const unit = roundInputs(a + <usize>i * aStride, k, INPUTS + <usize>i * pitch);
    store<f32>(UNITS + <usize>i * 4, unit);
  }
  for (let o: usize = 0; o < n; o += 8) {
    const scale0 = v128.load(scales);
    const scale1 = v128.load(scales, 16);
    const bias0 = v128.load(biases);
    const bias1 = v128.load(biases, 16);
    for (let i = 0; i < count; i += GROUP) {
      const from = INPUTS + <usize>i * pitch;
      const past = <usize>(last - i);
      const from1 = from + min<usize>(1, past) * pitch;
      const from2 = from + min<usize>(2, past) * pitch;
      const from3 = from + min<usize>(3, past) * pitch;
      multiply(weights, k, from, from1, from2, from3);
      let to = out + <usize>i * outStride;
      finish(0, i, to, scale0, scale1, bias0, bias1, kind);
      if (past >= 1) finish(1, i, (to += outStride), scale0, scale1, bias0, bias1, kind);
      if (past >= 2) finish(2, i, (to += outStride), scale0, scale1, bias0, bias1, kind);
      if (past >= 3) finish(3, i, (to += outStride), scale0, scale1, bias0, bias1, kind);
    }
    weights += k * 16;
    biases += 32;
    scales += 32;
    out += 32;
  }
}

/** Store eight outputs of position i + j, whose sums are the j-th of the last product. */
@inline
function finish(
  j: i32,
  i: i32,
  out: usize,
  scale0: v128,
  scale1: v128,
  bias0: v128,
  bias1: v128,
  kind: i32,
): void {
  const unit = v128.load32_splat(UNITS + <usize>(i + j) * 4);
  v128.store(out, finished(lowSums(j), f32x4.mul(unit, scale0), bias0, kind, out));
  v128.store(out, finished(highSums(j), f32x4.mul(unit, scale1), bias1, kind, out + 16), 16);
}

/** Round K float32 to int16 whose norm is INPUT_NORM; returns their unit. */
function roundInputs(x: usize, k: usize, out: usize): f32 {
  let squares = f32x4.splat(0);
  for (let i: usize = 0; i < k * 4; i += 16) {
    const values = v128.load(x + i);
    squares = f32x4.add(squares, f32x4.mul(values, values));
  }
  const even = f32x4.extract_lane(squares, 0) + f32x4.extract_lane(squares, 2);
  const odd = f32x4.extract_lane(squares, 1) + f32x4.extract_lane(squares, 3);
  const norm = max<f32>(sqrt<f32>(even + odd), SMALLEST_NORM);
  const scale = f32x4.splat(INPUT_NORM / norm);
  for (let i: usize = 0; i < k; i += 8) {
    const low = nearestIntegers(f32x4.mul(v128.load(x + i * 4), scale));
    const high = nearestIntegers(f32x4.mul(v128.load(x + i * 4, 16), scale));
    v128.store(out + i * 2, i16x8.narrow_i32x4_s(low, high));
  }
  return norm / INPUT_NORM;
}

/** Four sums as float32, with LeakyReLU, or added to what the output holds. */
@inline
function finished(sums: v128, unit: v128, bias: v128, kind: i32, out: usize): v128 {
  const x = f32x4.add(f32x4.mul(f32x4.convert_i32x4_s(sums), unit), bias);
  if (kind == RESIDUAL) return f32x4.add(x, v128.load(out));
  if (kind == LEAKY) return f32x4.pmax(x, f32x4.mul(x, f32x4.splat(0.125)));
  return x;
}

/**
 * Round a weight [n, k] float32 to int32 that fit int16, with the unit of each row in `scales`.
 *
 * The norm of a row is at most WEIGHT_NORM. A row that is not finite becomes 0, and its unit is not
 * finite.
 */
export function roundWeights(weights: usize, n: usize, k: usize, out: usize, scales: usize): void {
  for (let row: usize = 0; row < n; row++) {
    let squares: f64 = 0;
    let largest: f64 = 0;
    for (let i: usize = 0; i < k; i++) {
      const w = <f64>load<f32>(weights + i * 4);
      squares += w * w;
      largest = max(largest, abs(w));
    }
    const norm = max(sqrt<f64>(squares), SMALLEST_NORM);
    const unit = max(norm / WEIGHT_NORM, largest / 32767);
    const scale: f64 = isFinite(unit) ? 1 / unit : 0;
    for (let i: usize = 0; i < k; i++) {
      const w = scale > 0 ? <f64>load<f32>(weights + i * 4) * scale : 0;
      store<i32>(out + i * 4, <i32>nearest<f64>(w));
    }
    store<f32>(scales + row * 4, <f32>unit);
    weights += k * 4;
    out += k * 4;
  }
}

/** A depthwise 3×3 layer: three rows of `count` positions of C float32 -> its columns from…to. */
function depthwiseFloat(
  layer: usize,
  above: usize,
  here: usize,
  below: usize,
  count: i32,
  from: i32,
  to: i32,
  out: usize,
): void {
  const stride = outputsOf(layer) * 4;
  const weights = weightsOf(layer);
  const biases = biasesOf(layer);
  const last = <usize>(count - 1) * stride;
  const end = <usize>to * stride;
  for (let i = <usize>from * stride; i < end; i += stride) {
    const left = i == 0 ? <usize>0 : i - stride;
    const right = i == last ? i : i + stride;
    for (let o: usize = 0; o < stride; o += 16) {
      let w = weights + o;
      let s = v128.load(biases + o);
      s = f32x4.add(s, f32x4.mul(v128.load(above + left + o), v128.load(w)));
      w += stride;
      s = f32x4.add(s, f32x4.mul(v128.load(above + i + o), v128.load(w)));
      w += stride;
      s = f32x4.add(s, f32x4.mul(v128.load(above + right + o), v128.load(w)));
      w += stride;
      s = f32x4.add(s, f32x4.mul(v128.load(here + left + o), v128.load(w)));
      w += stride;
      s = f32x4.add(s, f32x4.mul(v128.load(here + i + o), v128.load(w)));
      w += stride;
      s = f32x4.add(s, f32x4.mul(v128.load(here + right + o), v128.load(w)));
      w += stride;
      s = f32x4.add(s, f32x4.mul(v128.load(below + left + o), v128.load(w)));
      w += stride;
      s = f32x4.add(s, f32x4.mul(v128.load(below + i + o), v128.load(w)));
      w += stride;
      s = f32x4.add(s, f32x4.mul(v128.load(below + right + o), v128.load(w)));
      v128.store(out, s);
      out += 16;
    }
  }
}

/**
 * A residual block, in place on rows top…bottom, columns left…right of [height, width] positions.
 *
 * What lies around them is read, and left as it is. `scratch` has room for 6 rows of width · C
 * float32.
 */
export function blockFloat(
  layers: usize,
  x: usize,
  stride: usize,
  height: i32,
  width: i32,
  top: i32,
  left: i32,
  bottom: i32,
  right: i32,
  scratch: usize,
): void {
  const dw = layers + LAYER;
  const inner = outputsOf(layers) * 4;
  const pitch = <usize>width * stride;
  const first = max(left - 1, 0);
  const read = min(right + 1, width) - first;
  const count = right - left;
  const row = <usize>read * inner;
  const spread = scratch + 3 * row;
  const hidden = scratch + 4 * row;
  const start = x + <usize>first * stride;
  let ready = max(top - 1, 0);
  for (let r = top; r < bottom; r++) {
    const above = max(r - 1, 0);
    const below = min(r + 1, height - 1);
    for (; ready <= below; ready++) {
      const from = start + <usize>ready * pitch;
      linearFloat(layers, from, stride, read, scratch + <usize>(ready % 3) * row, inner, LEAKY);
    }
    depthwiseFloat(
      dw,
      scratch + <usize>(above % 3) * row,
      scratch + <usize>(r % 3) * row,
      scratch + <usize>(below % 3) * row,
      read,
      left - first,
      right - first,
      spread,
    );
    const here = x + <usize>r * pitch + <usize>left * stride;
    linearFloat(layers + 2 * LAYER, spread, inner, count, here, stride, RESIDUAL);
    linearFloat(layers + 3 * LAYER, here, stride, count, hidden, 2 * inner, LEAKY);
    linearFloat(layers + 4 * LAYER, hidden, 2 * inner, count, here, stride, RESIDUAL);
  }
}

/**
 * y_hat, [count, m] int16 in units of 1/64 -> its channels from…to as float32.
 *
 * Zeros follow, up to a multiple of 8 channels.
 */
export function toReal(
  latents: usize,
  count: usize,
  m: usize,
  from: usize,
  to: usize,
  out: usize,
  outStride: usize,
): void {
  const channels = to - from;
  const all = (channels + 7) & ~7;
  latents += from * 2;
  for (let i: usize = 0; i < count; i++) {
    for (let c: usize = 0; c < channels; c++) {
      store<f32>(out + c * 4, <f32>load<i16>(latents + c * 2) * <f32>0.015625);
    }
    for (let c = channels; c < all; c++) store<f32>(out + c * 4, 0);
    latents += m * 2;
    out += outStride;
  }
}

/**
 * `count` positions of 3·side² float32 (stride bytes apart) -> samples of side rows of pixels.
 *
 * `scratch` has room for stride / 4 bytes; rows of `out` are `pitch` bytes apart.
 */
export function samples(
  x: usize,
  stride: usize,
  count: i32,
  side: i32,
  out: usize,
  pitch: usize,
  scratch: usize,
): void {
  const half = f32x4.splat(0.5);
  const white = f32x4.splat(255);
  const black = f32x4.splat(0);
  const strip = <usize>(3 * side);
  for (let i = 0; i < count; i++) {
    for (let c: usize = 0; c < stride; c += 32) {
      let a = f32x4.nearest(f32x4.mul(f32x4.add(v128.load(x + c), half), white));
      let b = f32x4.nearest(f32x4.mul(f32x4.add(v128.load(x + c, 16), half), white));
      a = f32x4.pmin(f32x4.pmax(black, a), white); // not a number gives 0
      b = f32x4.pmin(f32x4.pmax(black, b), white);
      const words = i16x8.narrow_i32x4_s(
        i32x4.trunc_sat_f32x4_s(a),
        i32x4.trunc_sat_f32x4_s(b),
      );
      v128.store64_lane(scratch + (c >> 2), i8x16.narrow_i16x8_u(words, words), 0);
    }
    for (let r = 0; r < side; r++) {
      const from = scratch + <usize>r * strip;
      const to = out + <usize>r * pitch;
      for (let c: usize = 0; c < strip; c += 2) store<u16>(to + c, load<u16>(from + c));
    }
    x += stride;
    out += strip;
  }
}
