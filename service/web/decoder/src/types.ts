/** The types of the package's public functions. */

/** How to make a decoder. */
export interface DecoderOptions {
  /** Address of the index of weights, such as `https://example.org/weights/index.json`. */
  weightsUrl: string | URL;
  /** Address of kernels.wasm; by default it lies beside this script. */
  wasmUrl?: string | URL | undefined;
  /** Address of webp.wasm, fetched by the first stream with lossless parts; default as above. */
  webpUrl?: string | URL | undefined;
  /** Address of worker.js; default as above. */
  workerUrl?: string | URL | undefined;
  /** Workers; by default one for each processor, at most 4. */
  threads?: number | undefined;
  /** Larger pictures are refused, with sides rounded up to 16; 100 megapixels by default. */
  maxPixels?: number | undefined;
  /** Ends the making of the decoder. */
  signal?: AbortSignal | undefined;
}

/** What to decode of a picture. */
export interface DecodeOptions {
  /** In pixels of the picture; the whole of it by default. */
  region?: Region | undefined;
  /** Of the longest side in pixels; the picture's own size by default. It is never enlarged. */
  maxSize?: number | undefined;
  /** Take a stream that is cut, and give what there is of it. */
  partial?: boolean | undefined;
  /** Give the stored samples, in the colours of the stream's ICC profile, not sRGB. */
  raw?: boolean | undefined;
  signal?: AbortSignal | undefined;
}

/** A rectangle in pixels: left edge x, top edge y, width and height. */
export interface Region {
  x: number;
  y: number;
  width: number;
  height: number;
}

/** Where the bits of a picture go, for each latent of 16×16 pixels, row by row. */
export interface BitMap {
  /** In latents. */
  width: number;
  height: number;
  /** Bits of each latent; 0 where the graphics layer holds it. */
  bits: Float32Array<ArrayBuffer>;
  /** 1 where the graphics layer holds the block of pixels, else 0. */
  marked: Uint8Array<ArrayBuffer>;
}

/** The measure that a ladder of rates is trained for. */
export type Tune = "psnr" | "ms-ssim";

/** What `info` says of a stream. */
export interface StreamInfo {
  /** Version of the format. */
  version: number;
  /** Pixels. */
  width: number;
  height: number;
  /** The rate, 1 to 8, or "lossless" where every pixel is stored exactly. */
  rate: number | "lossless";
  /** The ladder that the rate belongs to. */
  tune: Tune;
  grey: boolean;
  /** Whether the picture has an alpha plane. */
  alpha: boolean;
  /** First 4 bytes of the identity of the weights, in hexadecimal digits. */
  model: string;
  /** First 4 bytes of the hash of the ready update that the stream names, or null. */
  ready: string | null;
  /** Whether the stream holds an update of the synthesis of its own. */
  adapted: boolean;
  /** Whether only the machine that made the stream can decode it. */
  sameMachine: boolean;
  /** Share of the blocks of 16×16 pixels that are stored exactly, 0 to 1. */
  graphicsShare: number;
  /** Bytes of the whole stream. */
  bytes: number;
  /** Number of tiles of latents. */
  tiles: number;
  /** Sections with the bytes of their payloads, in stored order. */
  sections: { name: string; bytes: number }[];
  /** Bytes of the stream up to the end of each segment: so many show all that the segment adds. */
  marks: { segment: string; bytes: number }[];
  /** ICC profile, null for sRGB. */
  icc: Uint8Array<ArrayBuffer> | null;
  /** Exif block, null without one. */
  exif: Uint8Array<ArrayBuffer> | null;
}
