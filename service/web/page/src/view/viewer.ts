/** The stage: two pictures on a canvas, with a slider, zoom, pan and keys. */

import { byId } from "../dom.js";
import type { Picture } from "../measure/measure.js";
import type { Mode, State } from "../state.js";
import { Camera, MAX_ZOOM } from "./camera.js";
import type { Heat } from "./heat.js";
import { paint } from "./paint.js";

/** What of the state the stage shows and changes. */
export type ViewState = Pick<State, "mode" | "split" | "zoom" | "x" | "y" | "gain">;

/** Device pixels that an arrow key moves the picture. */
const KEY_STEP = 64;
/** Movement of a wheel that is one step of zoom. */
const WHEEL_STEP = 60;

export class Viewer {
  readonly #stage = byId("stage", HTMLElement);
  readonly #canvas = byId("canvas", HTMLCanvasElement);
  readonly #slider = byId("split", HTMLInputElement);
  readonly #handle = byId("handle", HTMLElement);
  readonly #camera = new Camera();
  readonly #view: ViewState;
  readonly #onChange: () => void;
  /** Positions of the pointers that are down, in device pixels. */
  readonly #pointers = new Map<number, { x: number; y: number }>();
  #a: Picture | null = null;
  #b: Picture | null = null;
  #heat: Heat | null = null;
  #scheduled = false;
  #wheel = 0;
  #spread = 0;

  /**
   * @param view is read and written
   * @param onChange is told when the visitor has changed `view`
   */
  constructor(view: ViewState, onChange: () => void) {
    this.#view = view;
    this.#onChange = onChange;
    new ResizeObserver(() => this.#resize()).observe(this.#stage);
    this.#slider.addEventListener("input", () => this.#moveSplit(Number(this.#slider.value) / 100));
    this.#listen();
  }

  /** Show two pictures of equal sides; null leaves one out. */
  setPictures(a: Picture | null, b: Picture | null): void {
    this.#a = a;
    this.#b = b;
    const shown = a ?? b;
    if (shown !== null) {
      this.#camera.setPicture(shown.full.width, shown.full.height);
      this.#restore();
    }
    this.refresh();
  }

  /** Show a heat map over the pictures; null takes it away. */
  setHeat(heat: Heat | null): void {
    this.#heat = heat;
    this.refresh();
  }

  /** Take what `view` says now, and paint. */
  refresh(): void {
    const { mode, split } = this.#view;
    const two = this.#a !== null && this.#b !== null;
    this.#slider.hidden = !two || mode !== "slider";
    this.#slider.value = String(split * 100);
    this.#handle.style.left = `${split * 100}%`;
    this.#stage.dataset["mode"] = two ? mode : this.#a !== null ? "a" : "b";
    this.#stage.classList.toggle("movable", this.#camera.canPan);
    this.#schedule();
  }

  /** Zoom around the middle: 1 to 8, or 0 to fit. */
  zoomTo(zoom: number): void {
    this.#camera.zoomTo(zoom);
    this.#moved();
  }

  /** Zoom one step in (1) or out (-1). */
  zoomBy(direction: 1 | -1): void {
    this.zoomTo(this.#camera.next(direction));
  }

  /** Device pixels per pixel of the picture. */
  get scale(): number {
    return this.#camera.scale;
  }

  #restore(): void {
    const { zoom, x, y } = this.#view;
    this.#camera.zoom = zoom;
    if (zoom > 0 && (x > 0 || y > 0)) {
      this.#camera.x = x;
      this.#camera.y = y;
    }
    this.#camera.pan(0, 0);
  }

  #resize(): void {
    const ratio = window.devicePixelRatio;
    this.#canvas.width = Math.max(1, Math.round(this.#stage.clientWidth * ratio));
    this.#canvas.height = Math.max(1, Math.round(this.#stage.clientHeight * ratio));
    this.#camera.setView(this.#canvas.width, this.#canvas.height);
    this.refresh();
  }

  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    requestAnimationFrame(() => {
      this.#scheduled = false;
      const { mode, split, gain } = this.#view;
      const { placement } = this.#camera;
      paint(this.#canvas, {
        a: this.#a,
        b: this.#b,
        mode,
        split,
        gain,
        heat: this.#heat,
        placement,
      });
    });
  }

  #moved(): void {
    this.#view.zoom = this.#camera.zoom;
    this.#view.x = this.#camera.zoom > 0 ? Math.round(this.#camera.x) : 0;
    this.#view.y = this.#camera.zoom > 0 ? Math.round(this.#camera.y) : 0;
    this.refresh();
    this.#onChange();
  }

  #moveSplit(split: number): void {
    this.#view.split = Math.round(Math.min(1, Math.max(0, split)) * 1000) / 1000;
    this.refresh();
    this.#onChange();
  }

  #listen(): void {
    this.#canvas.addEventListener("pointerdown", (event) => this.#press(event));
    this.#canvas.addEventListener("pointermove", (event) => this.#drag(event));
    for (const name of ["pointerup", "pointercancel"] as const) {
      this.#canvas.addEventListener(name, (event) => this.#pointers.delete(event.pointerId));
    }
    this.#canvas.addEventListener("wheel", (event) => this.#turn(event), { passive: false });
    this.#stage.addEventListener("keydown", (event) => {
      if (this.#pressKey(event)) event.preventDefault();
    });
  }

  #place(event: MouseEvent): { x: number; y: number } {
    const ratio = window.devicePixelRatio;
    return { x: event.offsetX * ratio, y: event.offsetY * ratio };
  }

  #press(event: PointerEvent): void {
    this.#canvas.setPointerCapture(event.pointerId);
    this.#pointers.set(event.pointerId, this.#place(event));
    this.#spread = this.#distance();
    if (!this.#camera.canPan && this.#isSplit()) this.#splitAt(event);
  }

  #drag(event: PointerEvent): void {
    const before = this.#pointers.get(event.pointerId);
    if (before === undefined) return;
    const now = this.#place(event);
    this.#pointers.set(event.pointerId, now);
    if (this.#pointers.size === 2) this.#pinch();
    else if (this.#camera.canPan) {
      this.#camera.pan(now.x - before.x, now.y - before.y);
      this.#moved();
    } else if (this.#isSplit()) this.#splitAt(event);
  }

  #isSplit(): boolean {
    return !this.#slider.hidden;
  }

  #splitAt(event: PointerEvent): void {
    this.#moveSplit(this.#place(event).x / this.#canvas.width);
  }

  /** Pixels between two pointers that are down, 0 for another number of pointers. */
  #distance(): number {
    const [one, other] = [...this.#pointers.values()];
    return one && other ? Math.hypot(one.x - other.x, one.y - other.y) : 0;
  }

  #pinch(): void {
    const ratio = this.#distance() / this.#spread;
    if (ratio < 1.25 && ratio > 0.8) return;
    this.#spread = this.#distance();
    const places = [...this.#pointers.values()];
    const middle = (key: "x" | "y"): number =>
      places.reduce((sum, place) => sum + place[key], 0) / places.length;
    this.#camera.zoomTo(this.#camera.next(ratio > 1 ? 1 : -1), middle("x"), middle("y"));
    this.#moved();
  }

  #turn(event: WheelEvent): void {
    if (this.#a === null && this.#b === null) return;
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 20 : 1;
    this.#wheel += event.deltaY * lines;
    if (Math.abs(this.#wheel) < WHEEL_STEP) return;
    const direction = this.#wheel < 0 ? 1 : -1;
    this.#wheel = 0;
    const { x, y } = this.#place(event);
    this.#camera.zoomTo(this.#camera.next(direction), x, y);
    this.#moved();
  }

  /** Do what a key means on the stage; whether it means anything. */
  #pressKey(event: KeyboardEvent): boolean {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target === this.#slider)
      return false;
    const moves: Record<string, [number, number]> = {
      ArrowLeft: [KEY_STEP, 0],
      ArrowRight: [-KEY_STEP, 0],
      ArrowUp: [0, KEY_STEP],
      ArrowDown: [0, -KEY_STEP],
    };
    const move = moves[event.key];
    if (move === undefined || !this.#camera.canPan) return false;
    this.#camera.pan(...move);
    this.#moved();
    return true;
  }

  /** Do what a key of the whole page means; whether it means anything. */
  handleKey(key: string): boolean {
    const modes: Record<string, Mode> = { a: "a", b: "b", s: "slider", d: "difference" };
    const mode = modes[key] ?? (key === "x" ? this.#other() : undefined);
    const zoom = Number(key);
    if (mode !== undefined) {
      this.#view.mode = mode;
      this.refresh();
      this.#onChange();
    } else if (key === "+" || key === "=") this.zoomBy(1);
    else if (key === "-") this.zoomBy(-1);
    else if (key !== " " && zoom >= 0 && zoom <= MAX_ZOOM) this.zoomTo(zoom);
    else return false;
    return true;
  }

  /** The picture that is not shown alone now. */
  #other(): Mode {
    return this.#view.mode === "a" ? "b" : "a";
  }
}
