/**
 * The worker that turns files into pictures and measures them, so that the page never waits.
 *
 * It keeps the samples of the original. Alpha is composed over black, as a canvas stores colours.
 */

import type { Side } from "../state.js";
import { channelMsSsim, psnr } from "./metrics.js";

/** A picture to show, and to compare with the original unless it is the original. */
export interface Request {
  id: number;
  side: Side;
  source: Blob | ImageData;
}

/** A picture to draw; `small` is a smaller one of a large picture, for views that need no more. */
export interface Picture {
  full: ImageBitmap;
  small: ImageBitmap | null;
}

/**
 * First the picture, or why there is none; then, of a result, PSNR if it has the same sides, and
 * MS-SSIM.
 */
export type Reply =
  | { id: number; picture: Picture }
  | { id: number; psnr: number }
  | { id: number; msSsim: number | null }
  | { id: number; error: string };

/** The worker's own scope; the types of both documents and workers are loaded. */
interface Scope {
  onmessage: ((event: MessageEvent<Request>) => void) | null;
  postMessage(message: Reply, transfer?: Transferable[]): void;
}

/** Pixels of a picture above which there is a smaller one. */
const LARGE = 4_000_000;

const scope = self as unknown as Scope;
let original: ImageData | null = null;
/** Ids of the last request of each side; work for an earlier one is given up. */
const newest = new Map<Side, number>();
let work: Promise<void> = Promise.resolve();

scope.onmessage = ({ data }) => {
  newest.set(data.side, data.id);
  work = work.then(() => serve(data));
};

function isStale({ id, side }: Request): boolean {
  return id < (newest.get(side) ?? 0) || id < (newest.get("original") ?? 0);
}

async function serve(request: Request): Promise<void> {
  const { id, side } = request;
  if (isStale(request)) return;
  if (side === "original") original = null;
  try {
    const full = await createImageBitmap(request.source);
    const samples = samplesOf(full);
    const small = await smallerOf(full);
    scope.postMessage({ id, picture: { full, small } }, small === null ? [full] : [full, small]);
    if (side === "original") original = samples;
    else if (original !== null) await measure(request, original, samples);
  } catch (error) {
    scope.postMessage({ id, error: error instanceof Error ? error.message : String(error) });
  }
}

async function measure(request: Request, before: ImageData, after: ImageData): Promise<void> {
  const { id } = request;
  const { width, height } = before;
  if (after.width !== width || after.height !== height) {
    scope.postMessage({ id, msSsim: null });
    return;
  }
  scope.postMessage({ id, psnr: psnr(before.data, after.data) });
  let sum: number | null = 0;
  for (let channel = 0; channel < 3; channel++) {
    await nextMessage();
    if (isStale(request)) return;
    const value = channelMsSsim(before.data, after.data, width, height, channel);
    sum = sum === null || value === null ? null : sum + value;
  }
  scope.postMessage({ id, msSsim: sum === null ? null : sum / 3 });
}

/** Let messages that have arrived be received. */
function nextMessage(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 0));
}

/** The picture with at most LARGE pixels; null where it has no more. */
async function smallerOf(full: ImageBitmap): Promise<ImageBitmap | null> {
  const scale = Math.sqrt(LARGE / (full.width * full.height));
  if (scale >= 1) return null;
  return createImageBitmap(full, {
    resizeWidth: Math.max(1, Math.round(full.width * scale)),
    resizeHeight: Math.max(1, Math.round(full.height * scale)),
    resizeQuality: "high",
  });
}

function samplesOf(bitmap: ImageBitmap): ImageData {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  if (context === null) throw new Error("the picture is too large for this browser");
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}
