/** The sizes of a model's networks, which service/docs/format.md explains. */

export interface Sizes {
  M: number;
  Cz: number;
  c8: number;
  c16: number;
  ne8: number;
  ne16: number;
  nd8: number;
  nd16: number;
  cp: number;
  cc: number;
}

/** Weight shape of every layer, by name without "entropy.". */
export type Shapes = ReadonlyMap<string, readonly number[]>;

/** Rows and columns of an array of positions. */
export interface Extent {
  height: number;
  width: number;
}

/** The next multiple of 8: how many channels the kernels work on. */
export function padded(channels: number): number {
  return Math.ceil(channels / 8) * 8;
}

/** The normal float32 powers of two, from 2^-126 on, by their bits: Math.pow may be inexact. */
const POWERS = new Float32Array(Int32Array.from({ length: 254 }, (_, i) => (i + 1) << 23).buffer);

/** 2^exponent, for exponents from -126 to 127. */
export function powerOfTwo(exponent: number): number {
  return POWERS[exponent + 126] ?? 0;
}

/** Product of the numbers of a shape. */
export function product(shape: readonly number[]): number {
  return shape.reduce((total, n) => total * n, 1);
}
