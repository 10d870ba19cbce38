/** The errors of a decoder: the same kinds as those of the Python package, by the same names. */

/** Base of every error that the decoder raises on purpose. */
export class RankpressError extends Error {
  override readonly name: string = "RankpressError"; // a minified class has another name of its own
}

/** The bytes are not a Rankpress stream, or a damaged one. */
export class BadStream extends RankpressError {
  override readonly name: string = "BadStream";
}

/** The stream is whole but needs a newer decoder. */
export class UnsupportedStream extends BadStream {
  override readonly name: string = "UnsupportedStream";
}

/** The stream was made with weights that the weights URL does not offer. */
export class UnknownModel extends BadStream {
  override readonly name: string = "UnknownModel";
}

/** The stream names a ready update that the weights URL does not offer. */
export class UnknownUpdate extends UnknownModel {
  override readonly name: string = "UnknownUpdate";
}

/** The picture has more pixels than the limit; refused before it is decoded. */
export class TooManyPixels extends RankpressError {
  override readonly name: string = "TooManyPixels";
}

/** An argument of a call is wrong. */
export class BadParameter extends RankpressError {
  override readonly name: string = "BadParameter";
}

/** A file of weights is missing, damaged or does not fit its model. */
export class StoreError extends RankpressError {
  override readonly name: string = "StoreError";
}

/** An error as a worker sends it. */
export interface SentError {
  name: string;
  message: string;
}

const KINDS = [
  BadStream,
  UnsupportedStream,
  UnknownModel,
  UnknownUpdate,
  TooManyPixels,
  BadParameter,
  StoreError,
].map((kind) => [new kind().name, kind] as const);

/** An error in a form that any browser can send to another thread. */
export function sentError(error: unknown): SentError {
  if (error instanceof Error) return { name: error.name, message: error.message };
  return { name: "Error", message: String(error) };
}

/** The error that a worker sent, as an object of its own class again. */
export function receivedError({ name, message }: SentError): RankpressError {
  const kind = new Map<string, typeof RankpressError>(KINDS).get(name);
  if (kind !== undefined) return new kind(message);
  return new RankpressError(name === "RankpressError" ? message : `${name}: ${message}`);
}
