/** Whole numbers in float32 as int32, without a conversion instruction, which is slow. */

/** Adding this to a float32 of at most 2^22 puts the nearest integer into the low bits. */
const MAGIC: f32 = 12582912;
const MAGIC_BITS: i32 = 0x4b400000;

/** Four float32 of at most 2^22 -> the nearest int32. */
@inline
export function nearestIntegers(x: v128): v128 {
  return i32x4.sub(f32x4.add(x, f32x4.splat(MAGIC)), i32x4.splat(MAGIC_BITS));
}
