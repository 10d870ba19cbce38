/**
 * A pool of workers. Each does one task at a time; other tasks wait in the pool, where an abort
 * signal can still take them back. A worker that dies rejects the task that it runs, and another
 * takes its place. All goes by messages, so pages need no cross-origin isolation.
 */

import { RankpressError, receivedError } from "../errors.js";
import type { Reply, Request, Resource, TaskName, Tasks } from "./messages.js";

/** Most resources of a kind that a worker keeps; the one that was used longest ago goes first. */
const KEPT: Partial<Record<Resource["kind"], number>> = { rate: 3, synthesis: 3 };

/** How to run a task. */
export interface TaskOptions {
  /** What the task needs; workers that have it already do not get it again. */
  resources: readonly Resource[];
  /** Buffers of the input that are given away. */
  transfer?: ArrayBuffer[];
  signal: AbortSignal;
  /** Run it before all tasks that are not urgent. */
  urgent?: boolean;
}

/** A task that waits or runs. */
interface Job {
  request: Request;
  options: TaskOptions;
  resolve(result: Tasks[TaskName]["result"]): void;
  reject(reason: unknown): void;
}

/** A place for a worker, which is started again after it died. */
interface Slot {
  worker: Worker | null;
  held: Map<string, Resource>;
  job: Job | null;
}

export class WorkerPool {
  private readonly slots: Slot[];
  private readonly urgent: Job[] = [];
  private readonly waiting: Job[] = [];
  private isClosed = false;

  /**
   * Starts workers.
   *
   * @param start starts one of them. @param kernels the compiled module. @param size how many.
   */
  constructor(
    private readonly start: () => Worker,
    private readonly kernels: WebAssembly.Module,
    readonly size: number,
  ) {
    this.slots = Array.from({ length: size }, () => ({ worker: null, held: new Map(), job: null }));
    for (const slot of this.slots) this.startWorker(slot);
  }

  /** Runs a task. Rejects with what it raises, or with the reason of an abort. */
  run<K extends TaskName>(
    name: K,
    input: Tasks[K]["input"],
    options: TaskOptions,
  ): Promise<Tasks[K]["result"]> {
    return new Promise((resolve, reject) => {
      if (this.isClosed) return reject(closedError());
      if (options.signal.aborted) return reject(options.signal.reason);
      const queue = options.urgent ? this.urgent : this.waiting;
      const forget = () => {
        const at = queue.indexOf(job);
        if (at >= 0) queue.splice(at, 1);
        reject(options.signal.reason);
      };
      const settled = <A>(then: (value: A) => void) => {
        return (value: A) => {
          options.signal.removeEventListener("abort", forget);
          then(value);
        };
      };
      const job: Job = {
        request: { kind: "task", name, input } as Request,
        options,
        resolve: settled(resolve as (result: Tasks[TaskName]["result"]) => void),
        reject: settled(reject),
      };
      options.signal.addEventListener("abort", forget);
      queue.push(job);
      this.dispatch();
    });
  }

  /** Gives all workers what coming tasks need, so that they build it at the same time. */
  prepare(resources: readonly Resource[]): void {
    for (const slot of this.slots) if (slot.worker !== null) give(slot, slot.worker, resources);
  }

  /** Stops all workers and rejects all tasks. */
  close(): void {
    this.isClosed = true;
    for (const slot of this.slots) {
      slot.worker?.terminate();
      slot.job?.reject(closedError());
      slot.worker = slot.job = null;
    }
    for (const job of [...this.urgent.splice(0), ...this.waiting.splice(0)])
      job.reject(closedError());
  }

  /** Gives waiting tasks to workers that have none. */
  private dispatch(): void {
    for (const slot of this.slots) {
      if (slot.job !== null) continue;
      const job = this.urgent.shift() ?? this.waiting.shift();
      if (job === undefined) return;
      this.give(slot, job);
    }
  }

  private give(slot: Slot, job: Job): void {
    try {
      const worker = slot.worker ?? this.startWorker(slot);
      give(slot, worker, job.options.resources);
      slot.job = job;
      worker.postMessage(job.request, job.options.transfer ?? []);
    } catch (error) {
      slot.job = null;
      job.reject(asRankpressError(error, "a worker cannot be given a task"));
      queueMicrotask(() => this.dispatch());
    }
  }

  private startWorker(slot: Slot): Worker {
    const worker = this.start();
    slot.worker = worker;
    slot.held = new Map();
    worker.addEventListener("message", ({ data }: MessageEvent<Reply>) => this.settle(slot, data));
    const died = (event: Event) => {
      event.preventDefault();
      const reason = "message" in event ? event.message : "its script cannot be loaded or run";
      this.replace(slot, worker, new RankpressError(`a worker of the decoder stopped: ${reason}`));
    };
    worker.addEventListener("error", died);
    worker.addEventListener("messageerror", died);
    send(worker, { kind: "start", kernels: this.kernels });
    return worker;
  }

  private settle(slot: Slot, reply: Reply): void {
    const job = slot.job;
    if (job === null) return;
    if ("error" in reply) {
      const error = receivedError(reply.error);
      if (reply.fatal && slot.worker !== null) return this.replace(slot, slot.worker, error);
      job.reject(error);
    } else {
      job.resolve(reply.result);
    }
    slot.job = null;
    this.dispatch();
  }

  /** Ends a worker; the next task of its place starts another. */
  private replace(slot: Slot, worker: Worker, error: RankpressError): void {
    if (slot.worker !== worker) return;
    worker.terminate();
    const job = slot.job;
    slot.worker = slot.job = null;
    job?.reject(error);
    this.dispatch();
  }
}

/** Sends a worker those resources that it does not hold, and drops what it used longest ago. */
function give(slot: Slot, worker: Worker, resources: readonly Resource[]): void {
  for (const resource of resources) {
    const isHeld = slot.held.delete(resource.key);
    slot.held.set(resource.key, resource); // at the end: used last
    if (!isHeld) send(worker, { kind: "resource", resource });
  }
  const counts = new Map<Resource["kind"], number>();
  for (const { kind, key } of [...slot.held.values()].reverse()) {
    const count = (counts.get(kind) ?? 0) + 1;
    counts.set(kind, count);
    if (count > (KEPT[kind] ?? Infinity)) {
      for (const dropped of [key, ...synthesesOf(slot, key)]) {
        if (slot.held.delete(dropped)) send(worker, { kind: "drop", key: dropped });
      }
    }
  }
}

/** Keys of the syntheses that were made of a rate. */
function synthesesOf(slot: Slot, rate: string): string[] {
  const all = [...slot.held.values()];
  return all.flatMap((one) => (one.kind === "synthesis" && one.rate === rate ? [one.key] : []));
}

function send(worker: Worker, request: Request): void {
  worker.postMessage(request);
}

function closedError(): RankpressError {
  return new RankpressError("the decoder is closed");
}

function asRankpressError(error: unknown, what: string): RankpressError {
  if (error instanceof RankpressError) return error;
  return new RankpressError(`${what}: ${error instanceof Error ? error.message : String(error)}`);
}
