/** Which part of a picture to decode, and at which size. It is never enlarged. */

import { BadParameter, TooManyPixels } from "../errors.js";
import {
  boxOf,
  cells,
  heightOf,
  PATCH,
  SCALES,
  widthOf,
  type Box,
  type Scale,
} from "../stream/tiles.js";
import type { DecodeOptions } from "../types.js";

/** Part and size of what is shown of a picture. */
export type View = Pick<DecodeOptions, "region" | "maxSize">;

/**
 * The pixels of a picture of width × height pixels that a view shows.
 *
 * Raises BadParameter where it reaches outside the picture or has no size.
 */
export function viewedPixels(view: View, width: number, height: number): Box {
  const { maxSize } = view;
  if (maxSize !== undefined && !(Number.isInteger(maxSize) && maxSize >= 1)) {
    throw new BadParameter(`maxSize is ${maxSize}, expected a whole number of at least 1`);
  }
  if (view.region === undefined) return boxOf(width, height);
  const { x, y, width: w, height: h } = view.region;
  const region = `region ${x},${y},${w},${h}`;
  if (![x, y, w, h].every(Number.isInteger)) {
    throw new BadParameter(`${region}: expected four whole numbers`);
  }
  if (Math.min(x, y) < 0 || Math.min(w, h) < 1) {
    throw new BadParameter(`${region} starts outside the picture or is empty`);
  }
  if (x + w > width || y + h > height) {
    throw new BadParameter(`${region} reaches outside the picture of ${width}x${height} pixels`);
  }
  return { top: y, left: x, bottom: y + h, right: x + w };
}

/** Width and height at which a view shows these pixels. */
export function fit(view: View, pixels: Box): { width: number; height: number } {
  const [width, height] = [widthOf(pixels), heightOf(pixels)];
  if (view.maxSize === undefined) return { width, height };
  const scale = Math.min(1, view.maxSize / Math.max(width, height));
  return {
    width: Math.max(1, rounded(width * scale)),
    height: Math.max(1, rounded(height * scale)),
  };
}

/** The scale of the smallest picture that is large enough for a view of these pixels; else 1. */
export function scaleOf(view: View, pixels: Box): Scale | 1 {
  const { width, height } = fit(view, pixels);
  const whole = boxOf(widthOf(pixels), heightOf(pixels));
  if (width === whole.right && height === whole.bottom) return 1;
  const isEnough = (scale: Scale) => {
    const small = cells(whole, scale);
    return width <= small.right && height <= small.bottom;
  };
  return SCALES.find(isEnough) ?? 1;
}

/** Raises TooManyPixels for a picture over the limit; its sides count as whole latents. */
export function checkPixels(limit: number, width: number, height: number): void {
  const padded = Math.ceil(width / PATCH) * Math.ceil(height / PATCH) * PATCH ** 2;
  if (padded <= limit) return;
  throw new TooManyPixels(
    `the picture is ${width}x${height}, with sides rounded up to ${PATCH}: ${padded} pixels, ` +
      `the limit is ${limit}`,
  );
}

/** The nearest whole number, the even one of two. */
function rounded(value: number): number {
  const low = Math.floor(value);
  const rest = value - low;
  if (rest !== 0.5) return Math.round(value);
  return low % 2 === 0 ? low : low + 1;
}
