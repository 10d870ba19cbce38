/** What a stream is, read from its bytes without decoding its pixels. */
import type { StreamInfo } from "./types.js";
/**
 * Describes a stream without decoding it. It needs no weights.
 *
 * With `partial`, a stream that is cut is described too. Raises BadStream and UnsupportedStream.
 */
export declare function info(source: ArrayBuffer | ArrayBufferView, options?: {
    partial?: boolean;
}): StreamInfo;
