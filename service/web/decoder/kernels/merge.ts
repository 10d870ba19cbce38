/** Low-rank merges, and packing of the merged weights for the layers. */

/**
 * Add an update of a layer to `delta`, [n, k] int64 in units of 2^-32.
 *
 * b is [n, rank], a [rank, k], exponents [rank], all int8; sixteenths is the update's weight.
 */
export function addProduct(
  delta: usize,
  n: usize,
  k: usize,
  b: usize,
  a: usize,
  exponents: usize,
  rank: usize,
  sixteenths: i64,
): void {
  for (let row: usize = 0; row < n; row++) {
    for (let r: usize = 0; r < rank; r++) {
      const exponent = <i64>load<i8>(exponents + r) + 28;
      const left = (<i64>load<i8>(b + row * rank + r) << exponent) * sixteenths;
      if (left == 0) continue;
      const factors = a + r * k;
      for (let i: usize = 0; i < k; i++) {
        const at = delta + i * 8;
        store<i64>(at, load<i64>(at) + left * <i64>load<i8>(factors + i));
      }
    }
    delta += k * 8;
  }
}

/** weights += round(delta), both with `count` values; weights are int32, limited to their range. */
export function addRounded(weights: usize, delta: usize, count: usize): void {
  for (let i: usize = 0; i < count; i++) {
    const sum = <i64>load<i32>(weights + i * 4) + ((load<i64>(delta + i * 8) + (1 << 31)) >> 32);
    store<i32>(weights + i * 4, <i32>min(max(sum, <i64>i32.MIN_VALUE), <i64>i32.MAX_VALUE));
  }
}

/** The largest |weight| · 1023 + |bias| of a row; weights are [n, k] int32, biases float64. */
export function largestSum(weights: usize, biases: usize, n: usize, k: usize): f64 {
  let largest: f64 = 0;
  for (let row: usize = 0; row < n; row++) {
    let sum: i64 = 0;
    for (let i: usize = 0; i < k; i++) sum += abs(<i64>load<i32>(weights + i * 4));
    weights += k * 4;
    largest = max(largest, <f64>sum * 1023 + abs(load<f64>(biases + row * 8)));
  }
  return largest;
}

/**
 * Pack [*, k] int32 as int16 for `linear`: [rows/8][columns/2][8][2].
 *
 * `rows` and `columns` are int32 lists of the rows and columns to take, -1 for zeros.
 */
export function packIntegers(
  weights: usize,
  k: i32,
  rows: usize,
  rowCount: i32,
  columns: usize,
  columnCount: i32,
  out: usize,
): void {
  for (let r = 0; r < rowCount; r += 8) {
    for (let c = 0; c < columnCount; c += 2) {
      for (let i = 0; i < 8; i++) {
        const row = load<i32>(rows + <usize>(r + i) * 4);
        for (let j = 0; j < 2; j++) {
          const column = load<i32>(columns + <usize>(c + j) * 4);
          const at = weights + <usize>(row * k + column) * 4;
          store<i16>(out, row < 0 || column < 0 ? 0 : <i16>load<i32>(at));
          out += 2;
        }
      }
    }
  }
}

/** float16 -> float32. */
export function widen(halves: usize, floats: usize, count: usize): void {
  for (let i: usize = 0; i < count; i++) {
    const half = <u32>load<u16>(halves + i * 2);
    const sign = (half & 0x8000) << 16;
    const exponent = (half >> 10) & 31;
    const fraction = half & 1023;
    let value: f32;
    if (exponent == 0) {
      value = <f32>fraction * <f32>5.960464477539063e-8;
    } else {
      value = reinterpret<f32>(((exponent == 31 ? 255 : exponent + 112) << 23) | (fraction << 13));
    }
    store<u32>(floats + i * 4, reinterpret<u32>(value) | sign);
  }
}

/**
 * The units of a layer's factors: rows [n] and columns [k], float32, of weights [n, k] float32.
 *
 * `sums` has room for k float64.
 */
export function units(
  weights: usize,
  n: usize,
  k: usize,
  rows: usize,
  columns: usize,
  sums: usize,
): void {
  memory.fill(sums, 0, k * 8);
  for (let row: usize = 0; row < n; row++) {
    let sum: f64 = 0;
    for (let i: usize = 0; i < k; i++) {
      const w = <f64>load<f32>(weights + (row * k + i) * 4);
      sum += w * w;
    }
    const scale = max(sqrt<f64>(sum / <f64>k), 1e-8);
    store<f32>(rows + row * 4, <f32>scale);
    for (let i: usize = 0; i < k; i++) {
      const w = <f64>load<f32>(weights + (row * k + i) * 4) / scale;
      store<f64>(sums + i * 8, load<f64>(sums + i * 8) + w * w);
    }
  }
  for (let i: usize = 0; i < k; i++) {
    store<f32>(columns + i * 4, <f32>max(sqrt<f64>(load<f64>(sums + i * 8) / <f64>n), 1e-4));
  }
}

/** weights += rows · delta · columns: weights [n, k] are float32, delta is that of `addProduct`. */
export function addScaled(
  weights: usize,
  delta: usize,
  n: usize,
  k: usize,
  rows: usize,
  columns: usize,
): void {
  for (let row: usize = 0; row < n; row++) {
    const scale = load<f32>(rows + row * 4);
    for (let i: usize = 0; i < k; i++) {
      const value = <f32>(<f64>load<i64>(delta) / 4294967296.0);
      const change = scale * value * load<f32>(columns + i * 4);
      store<f32>(weights, load<f32>(weights) + change);
      weights += 4;
      delta += 8;
    }
  }
}
