/** Decoder of Rankpress streams for web pages. */
import type { BitMap, DecodeOptions, DecoderOptions } from "./types.js";
export * from "./errors.js";
export { info } from "./info.js";
export type * from "./types.js";
/** A decoder: some workers, and the weights that streams have asked for. */
export declare class Decoder {
    private readonly parts;
    private constructor();
    /** @internal Use `createDecoder`. */
    static create(options: DecoderOptions): Promise<Decoder>;
    /**
     * Decodes a stream.
     *
     * @returns the picture, or the part of it that is asked for, in sRGB unless `raw`. It is never
     * enlarged. Colours are not premultiplied; those of pixels without alpha are 0.
     * @throws BadStream (UnsupportedStream, UnknownModel, UnknownUpdate), TooManyPixels,
     * BadParameter, StoreError, another RankpressError where a worker fails; or the signal's reason.
     */
    decode(bytes: ArrayBuffer | ArrayBufferView, options?: DecodeOptions): Promise<ImageData>;
    /** Counts where the bits of a stream go, for each latent of 16×16 pixels; raises as `decode`. */
    bits(bytes: ArrayBuffer | ArrayBufferView, options?: Pick<DecodeOptions, "partial" | "signal">): Promise<BitMap>;
    /** Stops the workers. What is being decoded is rejected. */
    close(): void;
}
/** Makes a decoder. Weights are fetched when a stream asks for them. Raises RankpressError. */
export declare function createDecoder(options: DecoderOptions): Promise<Decoder>;
