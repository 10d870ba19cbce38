/** The page's end of the worker that opens and measures pictures. */

import type { Side } from "../state.js";
import type { Picture, Reply, Request } from "./measure.js";

/** What is known of a picture's likeness to the original; the first message has only PSNR. */
export interface Likeness {
  /** In dB; Infinity when equal, null where the sides differ. */
  psnr: number | null;
  /** Null for small pictures; undefined until it is computed. */
  msSsim: number | null | undefined;
}

interface Pending {
  resolve: (picture: Picture) => void;
  reject: (error: Error) => void;
  onLikeness: (likeness: Likeness) => void;
  psnr: number | null;
}

export class Measuring {
  readonly #worker = new Worker(new URL("./measure.js", import.meta.url), { type: "module" });
  readonly #pending = new Map<number, Pending>();
  #count = 0;

  constructor() {
    this.#worker.onmessage = ({ data }: MessageEvent<Reply>) => this.#receive(data);
  }

  /**
   * Open the picture of a side and compare it with the original, unless it is the original. What
   * was asked before of the side, or of the original, is not answered any more.
   *
   * Throws if the browser cannot show the picture.
   */
  open(
    side: Side,
    source: Blob | ImageData,
    onLikeness: (likeness: Likeness) => void = () => undefined,
  ): Promise<Picture> {
    if (side === "original") this.#pending.clear();
    const id = ++this.#count;
    const request: Request = { id, side, source };
    this.#worker.postMessage(request);
    return new Promise((resolve, reject) => {
      this.#pending.set(id, { resolve, reject, onLikeness, psnr: null });
    });
  }

  #receive(reply: Reply): void {
    const pending = this.#pending.get(reply.id);
    if (pending === undefined) return;
    if ("picture" in reply) pending.resolve(reply.picture);
    else if ("error" in reply) pending.reject(new Error(reply.error));
    else if ("psnr" in reply) {
      pending.psnr = reply.psnr;
      pending.onLikeness({ psnr: reply.psnr, msSsim: undefined });
    } else {
      pending.onLikeness({ psnr: pending.psnr, msSsim: reply.msSsim });
      this.#pending.delete(reply.id);
    }
  }
}
