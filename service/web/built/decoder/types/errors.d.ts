/** The errors of a decoder: the same kinds as those of the Python package, by the same names. */
/** Base of every error that the decoder raises on purpose. */
export declare class RankpressError extends Error {
    readonly name: string;
}
/** The bytes are not a Rankpress stream, or a damaged one. */
export declare class BadStream extends RankpressError {
    readonly name: string;
}
/** The stream is whole but needs a newer decoder. */
export declare class UnsupportedStream extends BadStream {
    readonly name: string;
}
/** The stream was made with weights that the weights URL does not offer. */
export declare class UnknownModel extends BadStream {
    readonly name: string;
}
/** The stream names a ready update that the weights URL does not offer. */
export declare class UnknownUpdate extends UnknownModel {
    readonly name: string;
}
/** The picture has more pixels than the limit; refused before it is decoded. */
export declare class TooManyPixels extends RankpressError {
    readonly name: string;
}
/** An argument of a call is wrong. */
export declare class BadParameter extends RankpressError {
    readonly name: string;
}
/** A file of weights is missing, damaged or does not fit its model. */
export declare class StoreError extends RankpressError {
    readonly name: string;
}
/** An error as a worker sends it. */
export interface SentError {
    name: string;
    message: string;
}
/** An error in a form that any browser can send to another thread. */
export declare function sentError(error: unknown): SentError;
/** The error that a worker sent, as an object of its own class again. */
export declare function receivedError({ name, message }: SentError): RankpressError;
