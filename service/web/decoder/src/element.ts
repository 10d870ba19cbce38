/** The element `<rankpress-img src width height alt loading weights>`, which shows a stream. */

import { BadParameter, createDecoder, info, RankpressError, type Decoder } from "./index.js";

/** How far outside of the window a lazy picture begins to load. */
const LAZY_MARGIN = "300px";

/** One decoder for each address of weights. */
const shared = new Map<string, Promise<Decoder>>();

/** The decoder that all elements of a page share for the weights at an address. */
export function sharedDecoder(weightsUrl: string | URL): Promise<Decoder> {
  const { href } = new URL(weightsUrl, document.baseURI);
  let decoder = shared.get(href);
  if (decoder === undefined) {
    decoder = createDecoder({ weightsUrl: href });
    shared.set(href, decoder);
    decoder.catch(() => shared.delete(href));
  }
  return decoder;
}

/** The event of a picture that cannot be shown. */
export class RankpressErrorEvent extends Event {
  constructor(readonly error: Error) {
    super("error");
  }
}

/**
 * Shows a stream as `<img>` shows an image file, decoded at the size at which it is displayed.
 *
 * Events: `load` after a new picture is shown, `resize` after it is decoded again because it is
 * displayed larger than before, `error` (with `error`) where it cannot be shown.
 */
export class RankpressImage extends HTMLElement {
  static readonly observedAttributes = ["src", "width", "height", "alt", "loading", "weights"];

  private readonly canvas = document.createElement("canvas");
  private readonly sheet = new CSSStyleSheet();
  private readonly sizes = new ResizeObserver(() => this.sizeChanged());
  private ownDecoder: Decoder | null = null;
  private visibility: IntersectionObserver | null = null;
  /** Ends the loading of the present `src`. */
  private loading: AbortController | null = null;
  /** Ends the decoding at the present size. */
  private decoding: AbortController | null = null;
  private picture: ShownPicture | null = null;
  private isQueued = false;

  constructor() {
    super();
    const root = this.attachShadow({ mode: "open" });
    root.adoptedStyleSheets = [this.sheet];
    root.append(this.canvas);
    this.describe();
    this.reserve();
  }

  /** The decoder; null stands for the one that elements of the same weights share. */
  get decoder(): Decoder | null {
    return this.ownDecoder;
  }

  set decoder(decoder: Decoder | null) {
    this.ownDecoder = decoder;
    this.restart();
  }

  get src(): string {
    return this.getAttribute("src") ?? "";
  }

  set src(value: string) {
    this.setAttribute("src", value);
  }

  get alt(): string {
    return this.getAttribute("alt") ?? "";
  }

  set alt(value: string) {
    this.setAttribute("alt", value);
  }

  /** Width of the whole picture in pixels, 0 before it is known. */
  get naturalWidth(): number {
    return this.picture?.width ?? 0;
  }

  /** Height of the whole picture in pixels, 0 before it is known. */
  get naturalHeight(): number {
    return this.picture?.height ?? 0;
  }

  connectedCallback(): void {
    this.sizes.observe(this);
    this.restart();
  }

  disconnectedCallback(): void {
    this.sizes.disconnect();
    this.stop();
  }

  attributeChangedCallback(name: string, before: string | null, now: string | null): void {
    if (before === now) return;
    if (name === "alt") this.describe();
    else if (name === "width" || name === "height") this.reserve();
    else this.restart();
  }

  /** The canvas says what the picture shows; one with an empty `alt` is decoration. */
  private describe(): void {
    const alt = this.getAttribute("alt");
    this.canvas.setAttribute("role", alt === "" ? "presentation" : "img");
    if (alt) this.canvas.setAttribute("aria-label", alt);
    else this.canvas.removeAttribute("aria-label");
  }

  /** Takes the place of the picture as `<img>` does: by attributes, else by its own size. */
  private reserve(): void {
    const width = pixelsOf(this.getAttribute("width"));
    const height = pixelsOf(this.getAttribute("height"));
    const ratio =
      width !== null && height !== null
        ? `${width} / ${height}`
        : this.picture && `${this.picture.width} / ${this.picture.height}`;
    const own = height === null ? this.picture?.width : undefined;
    const wide = width ?? own;
    this.sheet.replaceSync(`
      :host {
        display: inline-block;
        ${wide === undefined ? "" : `width: ${wide}px;`}
        ${height === null ? "" : `height: ${height}px;`}
        ${ratio === null ? "" : `aspect-ratio: ${ratio};`}
      }
      :host([hidden]) { display: none; }
      canvas { display: block; width: 100%; height: 100%; object-fit: inherit; }
    `);
  }

  /** Loads anew, once for all attributes that change at the same time. */
  private restart(): void {
    this.stop();
    if (this.isQueued) return;
    this.isQueued = true;
    queueMicrotask(() => {
      this.isQueued = false;
      if (!this.isConnected) return;
      if (this.src === "")
        this.canvas.width = 0; // shows nothing
      else this.begin();
    });
  }

  private stop(): void {
    this.visibility?.disconnect();
    this.visibility = null;
    this.loading?.abort();
    this.loading = this.decoding = this.picture = null;
  }

  /** Loads, or waits until the element is near the window if it is lazy. */
  private begin(): void {
    if (this.getAttribute("loading") !== "lazy") return void this.load();
    this.visibility = new IntersectionObserver(
      (entries) => {
        if (!entries.some((entry) => entry.isIntersecting)) return;
        this.visibility?.disconnect();
        void this.load();
      },
      { rootMargin: LAZY_MARGIN },
    );
    this.visibility.observe(this);
  }

  private async load(): Promise<void> {
    const loading = (this.loading = new AbortController());
    const { signal } = loading;
    try {
      const bytes = await fetchStream(new URL(this.src, document.baseURI), signal);
      const { width, height } = info(bytes);
      this.picture = { bytes, width, height, shown: 0 };
      this.reserve();
      await this.show(this.picture, signal);
      this.dispatchEvent(new Event("load"));
    } catch (error) {
      if (!signal.aborted) this.fail(error);
    }
  }

  /** Decodes the picture again where it is now displayed larger than it was decoded. */
  private sizeChanged(): void {
    const { picture, loading } = this;
    if (picture === null || loading === null || picture.shown === 0) return;
    if (this.neededSize(picture) <= picture.shown) return;
    this.show(picture, loading.signal).then(
      (isShown) => isShown && this.dispatchEvent(new Event("resize")),
      (error: unknown) => {
        if (!loading.signal.aborted) this.fail(error);
      },
    );
  }

  /** Decodes and shows the picture. Returns false where another decoding took its place. */
  private async show(picture: ShownPicture, signal: AbortSignal): Promise<boolean> {
    this.decoding?.abort();
    const decoding = (this.decoding = new AbortController());
    const abort = (): void => decoding.abort();
    signal.addEventListener("abort", abort);
    try {
      const decoder = this.ownDecoder ?? (await sharedDecoder(this.weights()));
      const maxSize = this.neededSize(picture);
      const data = await decoder.decode(picture.bytes, { maxSize, signal: decoding.signal });
      picture.shown = maxSize;
      this.canvas.width = data.width;
      this.canvas.height = data.height;
      this.canvas.getContext("2d")?.putImageData(data, 0, 0);
      return true;
    } catch (error) {
      if (decoding.signal.aborted && !signal.aborted) return false;
      throw error;
    } finally {
      signal.removeEventListener("abort", abort);
    }
  }

  /** Longest side at which the picture is displayed, in pixels; its own where that is unknown. */
  private neededSize({ width, height }: ShownPicture): number {
    const box = this.getBoundingClientRect();
    const scale = Math.max(box.width / width, box.height / height) * devicePixelRatio;
    const whole = Math.max(width, height);
    return scale > 0 ? Math.min(whole, Math.ceil(whole * scale)) : whole;
  }

  private weights(): string {
    const weights = this.getAttribute("weights");
    if (weights !== null) return weights;
    throw new BadParameter("rankpress-img needs the attribute weights, or the property decoder");
  }

  private fail(error: unknown): void {
    this.dispatchEvent(
      new RankpressErrorEvent(error instanceof Error ? error : new Error(String(error))),
    );
  }
}

/** A stream that has been fetched. */
interface ShownPicture {
  bytes: Uint8Array;
  /** Of the whole picture, in pixels. */
  width: number;
  height: number;
  /** Largest side at which it is shown, 0 before it is. */
  shown: number;
}

/** The whole number of an attribute as of `<img>`, null where it is none. */
function pixelsOf(value: string | null): number | null {
  const digits = value === null ? null : /^\s*(\d+)/.exec(value);
  return digits === null ? null : Number(digits[1]);
}

async function fetchStream(url: URL, signal: AbortSignal): Promise<Uint8Array> {
  const response = await fetch(url, { signal });
  if (!response.ok) throw new RankpressError(`${url} was answered with status ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}

if (!customElements.get("rankpress-img")) customElements.define("rankpress-img", RankpressImage);

declare global {
  interface HTMLElementTagNameMap {
    "rankpress-img": RankpressImage;
  }
}
