/** One picture under trial: its original, its stream, and the same picture in other formats. */

import type { Picture } from "../measure/measure.js";
import type { Likeness, Measuring } from "../measure/measuring.js";
import { type Calling, type Compressed, compare, decompress, Refused } from "../service.js";
import { type Match, OTHERS, type Other, type Side } from "../state.js";
import type { LocalDecoder } from "./local.js";

/** A file that is shown, with what is known of it. */
export interface Entry {
  file: Blob;
  /** Null where the browser cannot show it. */
  picture: Picture | null;
  /** In dB; null where it is not known. */
  psnr: number | null;
  /** Null where it is not known; undefined until it is computed. */
  msSsim: number | null | undefined;
}

/** Why there is no picture of a format. */
export interface Failure {
  reason: string;
}

/** How a stream became a picture. */
export interface Decoded {
  picture: Blob | ImageData;
  ms: number;
  where: "service" | "browser";
}

export class Trial {
  readonly file: File;
  /** Whether the file is a stream: then there is no original, and nothing to compress. */
  readonly isStream: boolean;
  /** Null until the stream has been made. */
  stream: Compressed | null = null;
  decoded: Decoded | null = null;
  /** What the other formats were given in common with the stream. */
  matched: Match = "bytes";
  /** Pixels of the picture; 0 until they are known. */
  pixels = 0;
  readonly #entries = new Map<Side, Entry | Failure>();
  readonly #measuring: Measuring;
  readonly #onChange: () => void;

  /** @param onChange is told whenever an entry has changed */
  constructor(file: File, measuring: Measuring, onChange: () => void) {
    this.file = file;
    this.isStream = /\.rkp$/i.test(file.name);
    this.#measuring = measuring;
    this.#onChange = onChange;
  }

  /** What there is of a side: undefined until it is there. */
  entry(side: Side): Entry | Failure | undefined {
    return this.#entries.get(side);
  }

  /** The picture of a side, null where there is none to show. */
  picture(side: Side): Picture | null {
    const entry = this.#entries.get(side);
    return entry !== undefined && "picture" in entry ? entry.picture : null;
  }

  /** Bits per pixel of a file, null until the pixels are known. */
  bpp(file: Blob): number | null {
    return this.pixels > 0 ? (8 * file.size) / this.pixels : null;
  }

  /** Open the original. One that the browser cannot show, the service may read all the same. */
  async open(): Promise<void> {
    let picture: Picture | null = null;
    try {
      picture = await this.#measuring.open("original", this.file);
    } catch {
      // HEIC, TIFF and others.
    }
    this.#set("original", { file: this.file, picture, psnr: null, msSsim: null });
  }

  /** Decode a stream, by the service or in this browser, and show it. */
  async setStream(
    stream: Compressed,
    decoder: LocalDecoder | null,
    calling: Calling,
  ): Promise<void> {
    const decoded = await decode(stream.stream, decoder, calling);
    await this.#show("rankpress", stream.stream, decoded.picture, stream.psnr, calling.signal);
    this.stream = stream;
    this.decoded = decoded;
    this.#onChange();
  }

  /**
   * Code the picture in the other formats, at the bytes or the PSNR of the stream. A stream that is
   * exact, or was not measured by the service, has no PSNR that others could be given.
   */
  async compareOthers(match: Match, calling: Calling): Promise<void> {
    const psnr = this.stream?.psnr ?? Infinity;
    this.matched = match === "psnr" && psnr < Infinity ? "psnr" : "bytes";
    for (const format of OTHERS) this.#set(format, undefined);
    for (const format of OTHERS) await this.#compareOther(format, calling);
  }

  /** Free the memory of all pictures. */
  close(): void {
    for (const side of [...this.#entries.keys()]) this.#set(side, undefined);
  }

  async #compareOther(format: Other, calling: Calling): Promise<void> {
    const { stream, matched } = this;
    if (stream === null) return;
    const goal =
      matched === "psnr" ? { target_psnr: stream.psnr ?? 0 } : { max_bytes: stream.stream.size };
    try {
      const other = await compare(this.file, format, goal, calling);
      await this.#show(format, other.file, other.file, other.psnr, calling.signal);
    } catch (error) {
      calling.signal.throwIfAborted();
      this.#set(format, { reason: reasonOf(error, matched) });
    }
  }

  /** Show a picture; what the browser measures then takes the place of the service's PSNR. */
  async #show(
    side: Side,
    file: Blob,
    source: Blob | ImageData,
    psnr: number | null,
    signal: AbortSignal,
  ): Promise<void> {
    const measured = this.picture("original") !== null;
    const entry: Entry = { file, picture: null, psnr, msSsim: measured ? undefined : null };
    const onLikeness = (likeness: Likeness): void => {
      entry.psnr = likeness.psnr ?? entry.psnr;
      entry.msSsim = likeness.msSsim;
      if (this.#entries.get(side) === entry) this.#onChange();
    };
    entry.picture = await this.#measuring.open(side, source, onLikeness);
    signal.throwIfAborted();
    this.#set(side, entry);
  }

  #set(side: Side, entry: Entry | Failure | undefined): void {
    const old = this.picture(side);
    if (entry === undefined) this.#entries.delete(side);
    else this.#entries.set(side, entry);
    const now = this.picture(side);
    if (now !== null) this.pixels = now.full.width * now.full.height;
    this.#onChange();
    old?.full.close();
    old?.small?.close();
  }
}

/** Why there is no picture of another format. */
function reasonOf(error: unknown, matched: Match): string {
  const problem = error instanceof Refused ? error.problem : "";
  if (problem === "target-unreachable") {
    return matched === "bytes" ? "cannot be this small" : "cannot be this good";
  }
  if (problem === "not-acceptable") return "would take the service too long";
  return error instanceof Error ? error.message : String(error);
}

async function decode(
  stream: Blob,
  decoder: LocalDecoder | null,
  calling: Calling,
): Promise<Decoded> {
  const start = performance.now();
  if (decoder === null) {
    const picture = await decompress(stream, calling);
    return { picture, ms: performance.now() - start, where: "service" };
  }
  const { picture, ms } = await decoder.decode(stream, calling.signal);
  return { picture, ms, where: "browser" };
}
