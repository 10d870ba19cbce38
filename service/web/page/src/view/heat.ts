/** Where the bits go: a map of bits per block of 16 × 16 pixels, and its legend. */

import type { BitMap } from "../../../decoder/src/index.js";

/** Pixels of a block's side. */
export const BLOCK = 16;

/** A heat map to be drawn over a picture, one pixel a block. */
export interface Heat {
  canvas: HTMLCanvasElement;
  bits: BitMap;
  /** Bits of a block at the upper end of the scale. */
  most: number;
}

/** Colours of the scale, dark to light: viridis, whose lightness grows evenly. */
const VIRIDIS = [
  [68, 1, 84],
  [72, 40, 120],
  [62, 74, 137],
  [49, 104, 142],
  [38, 130, 142],
  [31, 158, 137],
  [53, 183, 121],
  [109, 205, 89],
  [180, 222, 44],
  [253, 231, 37],
] as const;

/** Share of the blocks that the scale covers; few blocks have many more bits than all others. */
const COVERED = 0.995;

/** The colour of a share of the scale, 0 to 1. */
export function colourOf(share: number): readonly [number, number, number] {
  const place = Math.min(1, Math.max(0, share)) * (VIRIDIS.length - 1);
  const at = Math.min(VIRIDIS.length - 2, Math.floor(place));
  const low = VIRIDIS[at]!;
  const high = VIRIDIS[at + 1]!;
  const mix = (i: 0 | 1 | 2): number => Math.round(low[i] + (high[i] - low[i]) * (place - at));
  return [mix(0), mix(1), mix(2)];
}

/** Draw the map of a stream. */
export function heatOf(map: BitMap): Heat {
  const most = topOf(map.bits);
  const canvas = document.createElement("canvas");
  canvas.width = map.width;
  canvas.height = map.height;
  const pixels = new ImageData(map.width, map.height);
  map.bits.forEach((bits, i) => pixels.data.set([...colourOf(bits / most), 255], 4 * i));
  canvas.getContext("2d")?.putImageData(pixels, 0, 0);
  return { canvas, bits: map, most };
}

function topOf(bits: Float32Array): number {
  const sorted = bits.slice().sort();
  return Math.max(1, sorted[Math.floor(COVERED * (sorted.length - 1))] ?? 1);
}

/** Draw the scale into a canvas of the legend. */
export function drawScale(canvas: HTMLCanvasElement): void {
  const context = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x++) {
    if (context === null) return;
    context.fillStyle = `rgb(${colourOf(x / (canvas.width - 1)).join(" ")})`;
    context.fillRect(x, 0, 1, canvas.height);
  }
}
