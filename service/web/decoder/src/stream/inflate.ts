/**
 * Inflates one zlib stream within strict bounds, at once, by pako's port of zlib.
 *
 * The browser's own DecompressionStream answers later, and `info` must answer now.
 */

import {
  Z_BUF_ERROR,
  Z_FINISH,
  Z_OK,
  Z_STREAM_END,
  ZStream,
  zlibInflate,
  zlibInflateInit2,
} from "pako";

import { BadStream } from "../errors.js";

/** Window of 2^15 bytes, and no other header than that of zlib. */
const WINDOW_BITS = 15;

/**
 * Inflates bytes that are one whole zlib stream.
 *
 * Raises BadStream where there are more than `maxPacked` bytes, which may be blocks that inflate to
 * nothing and cost time; or where they are not one whole zlib stream of at most `maxBytes`.
 */
export function inflate(
  packed: Uint8Array,
  name: string,
  maxPacked: number,
  maxBytes: number,
): Uint8Array<ArrayBuffer> {
  if (packed.length > maxPacked) {
    throw new BadStream(`${name} takes ${packed.length} bytes, at most ${maxPacked} are read`);
  }
  const stream = new ZStream();
  zlibInflateInit2(stream, WINDOW_BITS);
  stream.input = packed;
  stream.avail_in = packed.length;
  let out = new Uint8Array(Math.min(maxBytes, 4 * packed.length + 64) + 1);
  for (;;) {
    stream.output = out;
    stream.avail_out = out.length - stream.next_out;
    const status = zlibInflate(stream, Z_FINISH);
    if (status === Z_STREAM_END) break;
    if (stream.avail_out > 0 || (status !== Z_OK && status !== Z_BUF_ERROR)) {
      throw new BadStream(`${name}: ${stream.msg || "the zlib stream is cut"}`);
    }
    if (out.length > maxBytes) throw new BadStream(`${name}: over ${maxBytes} bytes inflated`);
    out = grown(out, Math.min(maxBytes + 1, 2 * out.length));
  }
  if (stream.avail_in > 0) throw new BadStream(`${name}: bytes follow the zlib stream`);
  if (stream.next_out > maxBytes) throw new BadStream(`${name}: over ${maxBytes} bytes inflated`);
  return out.slice(0, stream.next_out);
}

/** A longer array that begins with the same bytes. */
function grown(bytes: Uint8Array<ArrayBuffer>, length: number): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(length);
  out.set(bytes);
  return out;
}
