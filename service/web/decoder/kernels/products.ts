/**
 * Sums of products of int16, which all linear layers are made of.
 *
 * Weights are [N/8][K/2][8][2]: what eight outputs take from two inputs lies together.
 */

/** Positions that are worked on together. */
export const GROUP: i32 = 4;

const SUMS: usize = memory.data(128, 16);

/**
 * Eight outputs of four positions of K int16 each; `lowSums` and `highSums` give the result.
 *
 * Inlined: a call for each product makes the networks a tenth slower.
 */
@inline
export function multiply(
  weights: usize,
  k: usize,
  p0: usize,
  p1: usize,
  p2: usize,
  p3: usize,
): void {
  let s00 = i32x4.splat(0), s01 = i32x4.splat(0);
  let s10 = i32x4.splat(0), s11 = i32x4.splat(0);
  let s20 = i32x4.splat(0), s21 = i32x4.splat(0);
  let s30 = i32x4.splat(0), s31 = i32x4.splat(0);
  const end = weights + k * 16;
  // Not unrolled: V8 would load everything first, and has no registers for it.
  for (let w = weights; w < end; w += 32) {
    const b0 = v128.load(w);
    const b1 = v128.load(w, 16);
    const x0 = v128.load32_splat(p0);
    s00 = i32x4.add(s00, i32x4.dot_i16x8_s(x0, b0));
    s01 = i32x4.add(s01, i32x4.dot_i16x8_s(x0, b1));
    const x1 = v128.load32_splat(p1);
    s10 = i32x4.add(s10, i32x4.dot_i16x8_s(x1, b0));
    s11 = i32x4.add(s11, i32x4.dot_i16x8_s(x1, b1));
    const x2 = v128.load32_splat(p2);
    s20 = i32x4.add(s20, i32x4.dot_i16x8_s(x2, b0));
    s21 = i32x4.add(s21, i32x4.dot_i16x8_s(x2, b1));
    const x3 = v128.load32_splat(p3);
    s30 = i32x4.add(s30, i32x4.dot_i16x8_s(x3, b0));
    s31 = i32x4.add(s31, i32x4.dot_i16x8_s(x3, b1));
    p0 += 4;
    p1 += 4;
    p2 += 4;
    p3 += 4;
  }
  v128.store(SUMS, s00);
  v128.store(SUMS, s01, 16);
  v128.store(SUMS, s10, 32);
  v128.store(SUMS, s11, 48);
  v128.store(SUMS, s20, 64);
  v128.store(SUMS, s21, 80);
  v128.store(SUMS, s30, 96);
  v128.store(SUMS, s31, 112);
}

/** Sums of a position of the last product: int32 of its outputs 0 to 3. */
@inline
export function lowSums(position: i32): v128 {
  return v128.load(SUMS + <usize>position * 32);
}

/** Sums of a position of the last product: int32 of its outputs 4 to 7. */
@inline
export function highSums(position: i32): v128 {
  return v128.load(SUMS + <usize>position * 32, 16);
}
