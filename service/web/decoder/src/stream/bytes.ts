/**
 * Bytes of unknown origin, read within bounds: a cursor, varints, lists of pieces, CRC-32C.
 *
 * Varints are unsigned LEB128 numbers of at most 5 bytes, without padding. A list of pieces is the
 * lengths of all pieces but the last, and then the pieces; the last has the bytes that are left.
 */

import { BadParameter, BadStream } from "../errors.js";

/** The bytes of a buffer or of a view of one, which are not copied. Raises BadParameter. */
export function bytesOf(source: ArrayBuffer | ArrayBufferView): Uint8Array {
  if (source instanceof Uint8Array) return source;
  if (ArrayBuffer.isView(source)) {
    return new Uint8Array(source.buffer, source.byteOffset, source.byteLength);
  }
  if (source instanceof ArrayBuffer) return new Uint8Array(source);
  throw new BadParameter("a stream is no ArrayBuffer, and no view of one");
}

/** Half-open range of offsets. */
export interface Span {
  start: number;
  end: number;
}

/** A cursor over bytes that never reads past their end. */
export class ByteReader {
  constructor(
    public data: Uint8Array,
    public at = 0,
  ) {}

  /** The next bytes. Raises BadStream where fewer are left. */
  take(count: number, name: string): Uint8Array {
    const left = this.data.length - this.at;
    if (count > left) {
      throw new BadStream(`${name} needs ${count} bytes at offset ${this.at}, ${left} are left`);
    }
    this.at += count;
    return this.data.subarray(this.at - count, this.at);
  }

  /** The next byte. Raises BadStream at the end. */
  byte(name: string): number {
    return this.take(1, name)[0]!;
  }

  /** The next number, below 2^35. Raises BadStream where it is cut, padded or too long. */
  varint(name: string): number {
    let value = 0;
    for (let i = 0; i < 5; i++) {
      const byte = this.byte(name);
      value += (byte & 0x7f) * 2 ** (7 * i);
      if (byte < 0x80) {
        if (byte === 0 && i > 0) {
          throw new BadStream(`${name} is padded with zeros at offset ${this.at}`);
        }
        return value;
      }
    }
    throw new BadStream(`${name} is longer than 5 bytes at offset ${this.at}`);
  }
}

/**
 * Reads the lengths of a list of pieces, and returns where each piece lies.
 *
 * `end` is the offset at which the list ends, which may lie behind the end of the bytes. Raises
 * BadStream where the lengths are cut, or exceed the list.
 */
export function pieceSpans(reader: ByteReader, count: number, name: string, end: number): Span[] {
  const left = reader.data.length - reader.at;
  if (left < count - 1) {
    throw new BadStream(`${name} has ${left} bytes, the lengths of ${count} pieces need more`);
  }
  const lengths: number[] = [];
  for (let i = 1; i < count; i++) lengths.push(reader.varint(`length of a piece of ${name}`));
  const spans: Span[] = [];
  let start = reader.at;
  for (const length of lengths) spans.push({ start, end: (start += length) });
  if (start > end) throw new BadStream(`pieces of ${name} exceed it by ${start - end} bytes`);
  spans.push({ start, end });
  return spans;
}

/** Reads a list of pieces that ends with the bytes. Errors as of `pieceSpans`. */
export function splitPieces(reader: ByteReader, count: number, name: string): Uint8Array[] {
  const spans = pieceSpans(reader, count, name, reader.data.length);
  return spans.map(({ start, end }) => reader.data.subarray(start, end));
}

/** Bytes as lower-case hexadecimal digits. */
export function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** CRC-32C (Castagnoli) of bytes, as an unsigned number. */
export function crc32c(bytes: Uint8Array): number {
  return crc(bytes, 0x82f63b78);
}

/** CRC-32 of bytes as PNG has it, as an unsigned number. */
export function crc32(bytes: Uint8Array): number {
  return crc(bytes, 0xedb88320);
}

/** The CRC of a reflected polynomial, with all bits inverted before and after. */
function crc(bytes: Uint8Array, polynomial: number): number {
  const table = Int32Array.from({ length: 256 }, (_, byte) => {
    let value = byte;
    for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ polynomial : value >>> 1;
    return value;
  });
  let sum = -1;
  for (let i = 0; i < bytes.length; i++) sum = table[(sum ^ bytes[i]!) & 0xff]! ^ (sum >>> 8);
  return ~sum >>> 0;
}
