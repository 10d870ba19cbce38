/** Which part of a picture is seen, and how large: zoom and pan. */

export const MAX_ZOOM = 8;

/** Where the picture lies on the canvas, in device pixels. */
export interface Placement {
  left: number;
  top: number;
  scale: number;
}

export class Camera {
  /** Device pixels per pixel of the picture, 1 to MAX_ZOOM; 0 fits the picture in. */
  zoom = 0;
  /** The pixel of the picture that is in the middle. */
  x = 0;
  y = 0;
  #width = 1;
  #height = 1;
  #viewWidth = 1;
  #viewHeight = 1;

  /** Take a picture of other sides; it is seen whole. */
  setPicture(width: number, height: number): void {
    if (width === this.#width && height === this.#height) return;
    this.#width = width;
    this.#height = height;
    this.x = width / 2;
    this.y = height / 2;
  }

  /** Take a canvas of other sides, in device pixels. */
  setView(width: number, height: number): void {
    this.#viewWidth = width;
    this.#viewHeight = height;
    this.#clamp();
  }

  /** Device pixels per pixel of the picture. A picture that fits is enlarged by whole factors. */
  get scale(): number {
    if (this.zoom > 0) return this.zoom;
    const fit = Math.min(this.#viewWidth / this.#width, this.#viewHeight / this.#height);
    return fit >= 1 ? Math.min(Math.floor(fit), MAX_ZOOM) : fit;
  }

  get placement(): Placement {
    const scale = this.scale;
    return {
      left: Math.round(this.#viewWidth / 2 - this.x * scale),
      top: Math.round(this.#viewHeight / 2 - this.y * scale),
      scale,
    };
  }

  /** Whether a part of the picture is out of sight. */
  get canPan(): boolean {
    const scale = this.scale;
    return this.#width * scale > this.#viewWidth || this.#height * scale > this.#viewHeight;
  }

  /** Move the picture by device pixels. */
  pan(dx: number, dy: number): void {
    this.x -= dx / this.scale;
    this.y -= dy / this.scale;
    this.#clamp();
  }

  /** Change the zoom so that a place on the canvas, in device pixels, keeps its pixel. */
  zoomTo(zoom: number, atX = this.#viewWidth / 2, atY = this.#viewHeight / 2): void {
    const before = this.scale;
    this.zoom = Math.min(MAX_ZOOM, Math.max(0, zoom));
    const change = 1 / before - 1 / this.scale;
    this.x += (atX - this.#viewWidth / 2) * change;
    this.y += (atY - this.#viewHeight / 2) * change;
    this.#clamp();
  }

  /** The next zoom that is larger (1) or smaller (-1); 0 when no whole factor is smaller. */
  next(direction: 1 | -1): number {
    const scale = this.scale;
    if (direction === 1) return Math.min(MAX_ZOOM, Math.floor(scale) + 1);
    const smaller = Math.ceil(scale) - 1;
    const fit = new Camera();
    fit.setPicture(this.#width, this.#height);
    fit.setView(this.#viewWidth, this.#viewHeight);
    return smaller > fit.scale ? smaller : 0;
  }

  #clamp(): void {
    const scale = this.scale;
    this.x = clampCentre(this.x, this.#width, this.#viewWidth / scale);
    this.y = clampCentre(this.y, this.#height, this.#viewHeight / scale);
  }
}

/** A centre such that a view of that many pixels does not leave the picture. */
function clampCentre(centre: number, length: number, visible: number): number {
  if (visible >= length) return length / 2;
  return Math.min(length - visible / 2, Math.max(visible / 2, centre));
}
