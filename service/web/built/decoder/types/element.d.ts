/** The element `<rankpress-img src width height alt loading weights>`, which shows a stream. */
import { type Decoder } from "./index.js";
/** The decoder that all elements of a page share for the weights at an address. */
export declare function sharedDecoder(weightsUrl: string | URL): Promise<Decoder>;
/** The event of a picture that cannot be shown. */
export declare class RankpressErrorEvent extends Event {
    readonly error: Error;
    constructor(error: Error);
}
/**
 * Shows a stream as `<img>` shows an image file, decoded at the size at which it is displayed.
 *
 * Events: `load` after a new picture is shown, `resize` after it is decoded again because it is
 * displayed larger than before, `error` (with `error`) where it cannot be shown.
 */
export declare class RankpressImage extends HTMLElement {
    static readonly observedAttributes: string[];
    private readonly canvas;
    private readonly sheet;
    private readonly sizes;
    private ownDecoder;
    private visibility;
    /** Ends the loading of the present `src`. */
    private loading;
    /** Ends the decoding at the present size. */
    private decoding;
    private picture;
    private isQueued;
    constructor();
    /** The decoder; null stands for the one that elements of the same weights share. */
    get decoder(): Decoder | null;
    set decoder(decoder: Decoder | null);
    get src(): string;
    set src(value: string);
    get alt(): string;
    set alt(value: string);
    /** Width of the whole picture in pixels, 0 before it is known. */
    get naturalWidth(): number;
    /** Height of the whole picture in pixels, 0 before it is known. */
    get naturalHeight(): number;
    connectedCallback(): void;
    disconnectedCallback(): void;
    attributeChangedCallback(name: string, before: string | null, now: string | null): void;
    /** The canvas says what the picture shows; one with an empty `alt` is decoration. */
    private describe;
    /** Takes the place of the picture as `<img>` does: by attributes, else by its own size. */
    private reserve;
    /** Loads anew, once for all attributes that change at the same time. */
    private restart;
    private stop;
    /** Loads, or waits until the element is near the window if it is lazy. */
    private begin;
    private load;
    /** Decodes the picture again where it is now displayed larger than it was decoded. */
    private sizeChanged;
    /** Decodes and shows the picture. Returns false where another decoding took its place. */
    private show;
    /** Longest side at which the picture is displayed, in pixels; its own where that is unknown. */
    private neededSize;
    private weights;
    private fail;
}
declare global {
    interface HTMLElementTagNameMap {
        "rankpress-img": RankpressImage;
    }
}
