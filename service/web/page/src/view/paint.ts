/** Painting of two pictures: side by side at a slider, alone, or as their difference. */

import type { BitMap } from "../../../decoder/src/index.js";
import type { Picture } from "../measure/measure.js";
import type { Mode } from "../state.js";
import type { Placement } from "./camera.js";
import { BLOCK, type Heat } from "./heat.js";

export interface Scene {
  a: Picture | null;
  b: Picture | null;
  mode: Mode;
  /** Share of the canvas's width where the slider is. */
  split: number;
  /** Factor of the difference: a power of two. */
  gain: number;
  heat: Heat | null;
  placement: Placement;
}

const HEAT_OPACITY = 0.75;
/** Side of a block on the screen below which marks could not be told apart. */
const LEAST_MARK = 4;

/** Paint a scene; the canvas is transparent where there is no picture. */
export function paint(canvas: HTMLCanvasElement, scene: Scene): void {
  const context = canvas.getContext("2d");
  if (context === null) return;
  context.reset();
  context.imageSmoothingEnabled = scene.placement.scale < 1;
  context.imageSmoothingQuality = "high";
  const { a, b, mode } = scene;
  if (a === null || b === null) draw(context, scene, a ?? b);
  else if (mode === "a") draw(context, scene, a);
  else if (mode === "b") draw(context, scene, b);
  else if (mode === "difference") drawDifference(context, scene, a, b);
  else drawHalves(context, scene, a, b);
  if (scene.heat !== null) drawHeat(context, scene, scene.heat);
}

function draw(context: CanvasRenderingContext2D, scene: Scene, picture: Picture | null): void {
  if (picture === null) return;
  const { left, top, width, height } = placeOf(scene, picture);
  const { full, small } = picture;
  context.drawImage(
    small !== null && width <= small.width ? small : full,
    left,
    top,
    width,
    height,
  );
}

/** Where a picture lies on the canvas. */
function placeOf(
  { placement: { left, top, scale } }: Scene,
  { full }: Picture,
): { left: number; top: number; width: number; height: number } {
  return { left, top, width: full.width * scale, height: full.height * scale };
}

function drawHalves(context: CanvasRenderingContext2D, scene: Scene, a: Picture, b: Picture): void {
  const { width, height } = context.canvas;
  const split = Math.round(scene.split * width);
  const half = (picture: Picture, from: number, to: number): void => {
    context.save();
    context.beginPath();
    context.rect(from, 0, to - from, height);
    context.clip();
    draw(context, scene, picture);
    context.restore();
  };
  half(a, 0, split);
  half(b, split, width);
}

function drawDifference(
  context: CanvasRenderingContext2D,
  scene: Scene,
  a: Picture,
  b: Picture,
): void {
  const { left, top, width, height } = placeOf(scene, a);
  context.save();
  context.beginPath();
  context.rect(left, top, width, height);
  context.clip();
  context.fillRect(left, top, width, height);
  draw(context, scene, a);
  context.globalCompositeOperation = "difference";
  draw(context, scene, b);
  context.globalCompositeOperation = "lighter";
  for (let gain = 1; gain < scene.gain; gain *= 2) context.drawImage(context.canvas, 0, 0);
  context.restore();
}

function drawHeat(context: CanvasRenderingContext2D, scene: Scene, heat: Heat): void {
  const picture = scene.a ?? scene.b;
  if (picture === null) return;
  const { left, top, width, height } = placeOf(scene, picture);
  const side = BLOCK * scene.placement.scale;
  context.save();
  context.beginPath();
  context.rect(left, top, width, height);
  context.clip();
  context.globalAlpha = HEAT_OPACITY;
  context.imageSmoothingEnabled = false;
  context.drawImage(heat.canvas, left, top, heat.bits.width * side, heat.bits.height * side);
  context.globalAlpha = 1;
  if (side >= LEAST_MARK) drawMarks(context, scene.placement, heat.bits);
  context.restore();
}

/** Strike through the blocks in sight that are stored exactly. */
function drawMarks(
  context: CanvasRenderingContext2D,
  { left, top, scale }: Placement,
  { width, height, marked }: BitMap,
): void {
  const side = BLOCK * scale;
  const first = (start: number): number => Math.max(0, Math.floor(-start / side));
  const last = (start: number, length: number, count: number): number =>
    Math.min(count, Math.ceil((length - start) / side));
  context.strokeStyle = "#fff";
  context.lineWidth = Math.max(1, side / 12);
  context.beginPath();
  for (let row = first(top); row < last(top, context.canvas.height, height); row++) {
    for (let column = first(left); column < last(left, context.canvas.width, width); column++) {
      if (marked[row * width + column] === 0) continue;
      const x = left + column * side;
      const y = top + row * side;
      context.moveTo(x + side / 4, y + (side * 3) / 4);
      context.lineTo(x + (side * 3) / 4, y + side / 4);
    }
  }
  context.stroke();
}
