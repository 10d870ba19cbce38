/**
 * Colours of ICC profiles in sRGB, converted by the browser: it is given the samples as a PNG with
 * the profile, block by block, and draws them. Alpha is kept aside, so nothing is premultiplied.
 */

import { RankpressError } from "../errors.js";
import { crc32 } from "../stream/bytes.js";
import { boxOf, cut, heightOf, widthOf, type Box } from "../stream/tiles.js";

/** Size of a block, which any canvas can have. */
const BLOCK_WIDTH = 4096;
const BLOCK_HEIGHT = 256;
const STORED_BLOCK = 65535;

/** Whether a profile says that it is sRGB. */
export function isSrgb(icc: Uint8Array): boolean {
  if (icc.length < 132) return false;
  const view = new DataView(icc.buffer, icc.byteOffset, icc.byteLength);
  const count = Math.min(view.getUint32(128), Math.floor((icc.length - 132) / 12));
  for (let tag = 0; tag < count; tag++) {
    const at = 132 + 12 * tag;
    if (view.getUint32(at) !== 0x64657363) continue; // "desc"
    const offset = view.getUint32(at + 4);
    const text = icc.subarray(offset, offset + Math.min(200, view.getUint32(at + 8)));
    return /^(desc|mluc).*sRGB/s.test(String.fromCharCode(...text.filter((byte) => byte >= 32)));
  }
  return false;
}

/**
 * Converts RGBA samples of a profile's colours to sRGB, in place; alpha stays as it is.
 *
 * Samples of a profile of other colours than RGB or grey are left as they are.
 */
export async function toSrgb(
  samples: Uint8ClampedArray<ArrayBuffer>,
  width: number,
  height: number,
  icc: Uint8Array<ArrayBuffer>,
): Promise<Uint8ClampedArray<ArrayBuffer>> {
  const space = String.fromCharCode(...icc.subarray(16, 20));
  if (space !== "RGB " && space !== "GRAY") return samples;
  if (typeof OffscreenCanvas === "undefined") {
    throw new RankpressError(
      "this browser cannot convert ICC profiles in workers; decode raw samples",
    );
  }
  const profile = iccChunk(icc);
  for (let top = 0; top < height; top += BLOCK_HEIGHT) {
    for (let left = 0; left < width; left += BLOCK_WIDTH) {
      const block = { top, left, bottom: top + BLOCK_HEIGHT, right: left + BLOCK_WIDTH };
      const box = cut(block, boxOf(width, height));
      copyColours(
        await drawn(pngOf(samples, width, box, profile, space === "GRAY"), box),
        samples,
        width,
        box,
      );
    }
  }
  return samples;
}

/** The samples of a PNG in sRGB. */
async function drawn(png: Blob, box: Box): Promise<Uint8ClampedArray> {
  const bitmap = await createImageBitmap(png);
  const canvas = new OffscreenCanvas(widthOf(box), heightOf(box));
  const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  if (context === null) throw new RankpressError("this browser gives no canvas to convert colours");
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, canvas.width, canvas.height).data;
}

function copyColours(
  from: Uint8ClampedArray,
  to: Uint8ClampedArray,
  width: number,
  box: Box,
): void {
  let at = 0;
  for (let y = box.top; y < box.bottom; y++) {
    const row = 4 * (y * width + box.left);
    for (let i = row; i < row + 4 * widthOf(box); i += 4, at += 4) {
      to.set(from.subarray(at, at + 3), i);
    }
  }
}

/** A PNG of a box of the samples, without alpha. */
function pngOf(
  samples: Uint8ClampedArray,
  width: number,
  box: Box,
  profile: Uint8Array<ArrayBuffer>,
  grey: boolean,
): Blob {
  const channels = grey ? 1 : 3;
  const stride = 1 + channels * widthOf(box); // a byte before each row says that it is not filtered
  const rows = new Uint8Array(stride * heightOf(box));
  for (let y = box.top; y < box.bottom; y++) {
    let to = (y - box.top) * stride + 1;
    for (let x = box.left; x < box.right; x++) {
      for (let c = 0; c < channels; c++) rows[to++] = samples[4 * (y * width + x) + c]!;
    }
  }
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, widthOf(box));
  view.setUint32(4, heightOf(box));
  header.set([8, grey ? 0 : 2], 8);
  const signature = Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a);
  const none = new Uint8Array(0);
  return new Blob(
    [signature, chunk("IHDR", header), profile, chunk("IDAT", stored(rows)), chunk("IEND", none)],
    { type: "image/png" },
  );
}

function iccChunk(icc: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
  const packed = stored(icc);
  const data = new Uint8Array(packed.length + 5);
  data.set([0x69, 0x63, 0x63, 0, 0]); // the name "icc", its end, and the method: deflate
  data.set(packed, 5);
  return chunk("iCCP", data);
}

function chunk(type: string, data: Uint8Array): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(data.length + 12);
  const view = new DataView(out.buffer);
  view.setUint32(0, data.length);
  out.set(new TextEncoder().encode(type), 4);
  out.set(data, 8);
  view.setUint32(8 + data.length, crc32(out.subarray(4, 8 + data.length)));
  return out;
}

/** Bytes as a zlib stream without compression. */
function stored(data: Uint8Array): Uint8Array<ArrayBuffer> {
  const blocks = Math.max(1, Math.ceil(data.length / STORED_BLOCK));
  const out = new Uint8Array(data.length + 5 * blocks + 6);
  const view = new DataView(out.buffer);
  out.set([0x78, 0x01]);
  let at = 2;
  for (let block = 0; block < blocks; block++) {
    const part = data.subarray(block * STORED_BLOCK, (block + 1) * STORED_BLOCK);
    out[at] = block === blocks - 1 ? 1 : 0;
    view.setUint16(at + 1, part.length, true);
    view.setUint16(at + 3, ~part.length & 0xffff, true);
    out.set(part, at + 5);
    at += 5 + part.length;
  }
  view.setUint32(at, adler32(data));
  return out;
}

/** The checksum of zlib. */
function adler32(bytes: Uint8Array): number {
  let a = 1;
  let b = 0;
  for (let at = 0; at < bytes.length;) {
    const end = Math.min(bytes.length, at + 3800); // so many fit into 31 bits
    for (; at < end; at++) b += a += bytes[at]!;
    a %= 65521;
    b %= 65521;
  }
  return b * 65536 + a;
}
