/** The panel that adapts the codec to one picture, and shows how far it is. */

import { byId } from "../dom.js";
import {
  adapt,
  type Calling,
  cancelJob,
  type Compressed,
  type Job,
  jobStream,
} from "../service.js";
import { drawCurves, hasEnded, JobEvents, type Point } from "./job.js";

/** What the page does when something happens to a job. */
export interface Hooks {
  /** A job is asked for; other work ends. */
  begin(): void;
  /** A better stream is there. */
  stream(stream: Compressed): void;
  /** The job has ended, and this is its stream; null where it has none. */
  ended(stream: Compressed | null): void;
  /** Another job is shown; empty for none. */
  changed(id: string): void;
  failed(error: unknown): void;
}

const STATES: Record<Job["status"], string> = {
  queued: "waiting for its turn",
  running: "running",
  succeeded: "done",
  failed: "failed",
  cancelled: "cancelled",
};

export class Adaptation {
  readonly #hooks: Hooks;
  #events: JobEvents | null = null;
  #job: Job | null = null;
  /** The id of a job that this page began, which nobody else waits for. */
  #own = "";
  #points: Point[] = [];
  #controller = new AbortController();
  /** Bytes and PSNR of the stream that was fetched last. */
  #fetched = "";
  #fetching = false;

  constructor(hooks: Hooks) {
    this.#hooks = hooks;
    byId("adapt-cancel", HTMLButtonElement).addEventListener("click", () => void this.#cancel());
  }

  /** Ask for a job and watch it. */
  start(file: Blob, rate: number, effort: number, { onWait }: Calling): void {
    this.leave();
    this.#hooks.begin();
    const calling = this.#calling(onWait);
    adapt(file, rate, effort, calling)
      .then(({ id, isNew }) => {
        if (isNew) this.#own = id;
        this.#hooks.changed(id);
        this.#watch(id);
      })
      .catch((error: unknown) => this.#fail(error, calling.signal));
  }

  /** Watch a job that is there already. */
  watch(id: string): void {
    this.leave();
    this.#watch(id);
  }

  /** Look at the job no longer; one of this page that still runs is cancelled. */
  leave(): void {
    const job = this.#job;
    if (job !== null && job.id === this.#own && !hasEnded(job)) void this.#cancel();
    this.#events?.close();
    this.#controller.abort();
    this.#controller = new AbortController();
    this.#events = null;
    this.#job = null;
    this.#points = [];
    this.#fetched = "";
    this.#fetching = false;
    this.#show();
  }

  #watch(id: string): void {
    const lost = (): void =>
      this.#hooks.failed(new Error("The service does not have this job any more."));
    this.#events = new JobEvents(id, (job) => this.#receive(job), lost);
  }

  #receive(job: Job): void {
    this.#job = job;
    if (job.bpp !== null && job.psnr_db !== null) {
      if (this.#points.length === 0 && job.first_bpp !== null && job.first_psnr_db !== null) {
        this.#points.push({ step: 0, bpp: job.first_bpp, psnr: job.first_psnr_db });
      }
      this.#points.push({ step: job.step ?? 0, bpp: job.bpp, psnr: job.psnr_db });
    }
    this.#show();
    void this.#fetch(job);
  }

  /** Fetch the stream where it is another one than before, or where the job has ended. */
  async #fetch(job: Job): Promise<void> {
    const version = `${job.bytes} ${job.psnr_db} ${hasEnded(job)}`;
    if (job.bytes === null) {
      if (hasEnded(job)) this.#hooks.ended(null);
      return;
    }
    if (this.#fetching || version === this.#fetched) return;
    this.#fetching = true;
    const calling = this.#calling();
    try {
      const stream = await jobStream(job.id, calling);
      this.#fetched = version;
      if (hasEnded(job)) this.#hooks.ended(stream);
      else this.#hooks.stream(stream);
    } catch (error) {
      this.#fail(error, calling.signal);
    } finally {
      if (!calling.signal.aborted) this.#fetching = false;
    }
    if (this.#job !== null && this.#job !== job && !calling.signal.aborted)
      void this.#fetch(this.#job);
  }

  async #cancel(): Promise<void> {
    const id = this.#job?.id;
    if (id === undefined) return;
    try {
      await cancelJob(id, { signal: AbortSignal.timeout(20_000) });
    } catch (error) {
      this.#hooks.failed(error);
    }
  }

  #calling(onWait?: Calling["onWait"]): Calling {
    const { signal } = this.#controller;
    return onWait === undefined ? { signal } : { signal, onWait };
  }

  #fail(error: unknown, signal: AbortSignal): void {
    if (!signal.aborted) this.#hooks.failed(error);
  }

  #show(): void {
    const job = this.#job;
    const running = job !== null && !hasEnded(job);
    byId("job", HTMLElement).hidden = job === null;
    byId("adapt-cancel", HTMLElement).hidden = !running;
    byId("adapt-start", HTMLElement).hidden = running;
    if (job === null) return;
    byId("job-state", HTMLElement).textContent = stateText(job);
    const progress = byId("job-progress", HTMLProgressElement);
    progress.hidden = !running;
    if (job.total === null || job.step === null) progress.removeAttribute("value");
    else {
      progress.max = Math.max(1, job.total);
      progress.value = job.step;
    }
    const curves = byId("curves", HTMLElement);
    if (this.#points.length > 0) drawCurves(curves, this.#points);
    else curves.replaceChildren();
  }
}

function stateText(job: Job): string {
  const phase = job.status === "running" && job.phase !== null ? `, ${job.phase}` : "";
  const step = job.step === null || job.total === null ? "" : `, step ${job.step} of ${job.total}`;
  const saved =
    job.bytes === null || job.first_bytes === null
      ? ""
      : `, ${job.bytes.toLocaleString("en")} bytes instead of ${job.first_bytes.toLocaleString("en")}`;
  const reason = job.error === null ? "" : ` (${job.error})`;
  return `The job is ${STATES[job.status]}${reason}${phase}${step}${saved}.`;
}
