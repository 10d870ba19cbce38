/** Files of tensors: safetensors, as the model store holds them. */

import { StoreError } from "../errors.js";
import { product } from "./sizes.js";

export interface Tensor {
  dtype: string;
  shape: number[];
  data: Uint8Array;
}

export type Tensors = Map<string, Tensor>;

const ITEM_BYTES: Readonly<Record<string, number>> = {
  I8: 1,
  U8: 1,
  I16: 2,
  U16: 2,
  F16: 2,
  I32: 4,
  F32: 4,
};

/** Read a file; the tensors are views of it. Raises StoreError. */
export function readTensors(file: Uint8Array): Tensors {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  if (file.length < 8) throw new StoreError("a file of tensors has no header");
  const length = Number(view.getBigUint64(0, true));
  if (length > file.length - 8) throw new StoreError("the header of a file of tensors is cut");
  const body = file.subarray(8 + length);
  const tensors: Tensors = new Map();
  for (const [name, entry] of Object.entries(readHeader(file.subarray(8, 8 + length)))) {
    if (name !== "__metadata__") tensors.set(name, readTensor(name, entry, body));
  }
  return tensors;
}

function readHeader(bytes: Uint8Array): object {
  let header: unknown;
  try {
    header = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw new StoreError("the header of a file of tensors is no JSON");
  }
  if (typeof header !== "object" || header === null) {
    throw new StoreError("the header of a file of tensors is no object");
  }
  return header;
}

function readTensor(name: string, entry: unknown, body: Uint8Array): Tensor {
  const { dtype, shape, data_offsets: offsets } = (entry ?? {}) as Record<string, unknown>;
  const bytes = typeof dtype === "string" ? ITEM_BYTES[dtype] : undefined;
  if (typeof dtype !== "string" || bytes === undefined || !isCounts(shape) || !isCounts(offsets)) {
    throw new StoreError(`tensor ${name} has no dtype, shape and place that can be read`);
  }
  const [begin = 0, end = 0] = offsets;
  if (end > body.length || end - begin !== product(shape) * bytes) {
    throw new StoreError(`tensor ${name} has ${end - begin} bytes, which is not its shape`);
  }
  return { dtype, shape, data: body.subarray(begin, end) };
}

function isCounts(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((n) => Number.isSafeInteger(n) && n >= 0);
}

/** The integers of a tensor of this shape. Raises StoreError. */
export function integers(
  tensors: Tensors,
  name: string,
  shape: readonly number[],
): Int32Array<ArrayBuffer> {
  return new Int32Array(wholeNumbers(shaped(tensors, name, shape), name));
}

/** The integers of a tensor of this shape, from low to high. Raises StoreError. */
export function limitedIntegers(
  tensors: Tensors,
  name: string,
  shape: readonly number[],
  low: number,
  high: number,
): Int32Array<ArrayBuffer> {
  const values = integers(tensors, name, shape);
  for (const value of values) {
    if (value < low || value > high) {
      throw new StoreError(`tensor ${name} holds ${value}, expected ${low} to ${high}`);
    }
  }
  return values;
}

/** The bytes of a vector of int8. Raises StoreError. */
export function int8s(tensors: Tensors, name: string): Int8Array {
  const tensor = tensors.get(name);
  if (tensor === undefined || tensor.dtype !== "I8" || tensor.shape.length !== 1) {
    throw new StoreError(`tensor ${name} is missing or is no int8 vector`);
  }
  return new Int8Array(new Uint8Array(tensor.data).buffer);
}

/** A tensor of this shape. Raises StoreError. */
export function shaped(tensors: Tensors, name: string, shape: readonly number[]): Tensor {
  const tensor = tensors.get(name);
  const actual = tensor === undefined ? "missing" : `[${tensor.shape.join()}]`;
  if (tensor === undefined || tensor.shape.join() !== shape.join()) {
    throw new StoreError(`tensor ${name} is ${actual}, expected [${shape.join()}]`);
  }
  return tensor;
}

function wholeNumbers(tensor: Tensor, name: string): ArrayLike<number> {
  const { buffer } = new Uint8Array(tensor.data);
  switch (tensor.dtype) {
    case "I8":
      return new Int8Array(buffer);
    case "U8":
      return new Uint8Array(buffer);
    case "I16":
      return new Int16Array(buffer);
    case "U16":
      return new Uint16Array(buffer);
    case "I32":
      return new Int32Array(buffer);
    default:
      throw new StoreError(`tensor ${name} is ${tensor.dtype}, expected integers`);
  }
}
