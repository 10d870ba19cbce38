/** Calls of the service. Addresses are relative to the page, so that it works behind a prefix. */

import type { Other } from "./state.js";

const MAX_TRIES = 6;

/** Jobs of visitors are done after those of all programs. */
const PRIORITY = 9;

/** A job of the page that was created so short a time before the answer is a new one. */
const NEW_MS = 5000;

/** The service refused; the message says why in plain words. */
export class Refused extends Error {
  /** Name of the problem, as the HTTP reference lists it. */
  readonly problem: string;

  constructor(problem: string, message: string) {
    super(message);
    this.problem = problem;
  }
}

/** The service did not answer at all. */
export class Away extends Error {}

/** What a call needs besides its parameters. */
export interface Calling {
  signal: AbortSignal;
  /** Told when a busy service is asked again, after so many seconds. */
  onWait?: (seconds: number) => void;
}

/** A compressed picture and what the service says about it. */
export interface Compressed {
  stream: Blob;
  /** A number, or "lossless". */
  rate: string;
  bpp: number;
  /** In dB, Infinity when exact; null where the service did not measure it. */
  psnr: number | null;
  /** Share of the blocks that are stored exactly. */
  graphics: number;
  notes: string;
  /** From Server-Timing: names and milliseconds. */
  times: Map<string, number>;
}

/** A picture in another format. */
export interface Compared {
  file: Blob;
  psnr: number | null;
}

/** What the page shows of the document of an adaptation job. */
export interface Job {
  id: string;
  status: "queued" | "running" | "succeeded" | "failed" | "cancelled";
  phase: string | null;
  step: number | null;
  total: number | null;
  bytes: number | null;
  bpp: number | null;
  psnr_db: number | null;
  first_bytes: number | null;
  first_bpp: number | null;
  first_psnr_db: number | null;
  /** Why it failed. */
  error: string | null;
}

/** A stream that the visitor has, of which the service has said nothing. */
export function givenStream(stream: Blob): Compressed {
  return { stream, rate: "", bpp: 0, psnr: null, graphics: 0, notes: "", times: new Map() };
}

export async function compress(
  file: Blob,
  query: URLSearchParams,
  calling: Calling,
): Promise<Compressed> {
  const response = await post(`compress?${query}`, file, calling);
  return compressedOf(response);
}

export async function decompress(stream: Blob, calling: Calling): Promise<Blob> {
  const response = await post("decompress?format=png", stream, calling);
  return response.blob();
}

export async function compare(
  file: Blob,
  format: Other,
  goal: { max_bytes: number } | { target_psnr: number },
  calling: Calling,
): Promise<Compared> {
  const query = new URLSearchParams({ format });
  for (const [name, value] of Object.entries(goal)) query.set(name, String(value));
  const response = await post(`compare?${query}`, file, calling);
  return {
    file: await response.blob(),
    psnr: numberOf(response.headers, "X-Rankpress-Psnr"),
  };
}

/** A job that was asked for, and whether nobody had asked for it before. */
export interface PostedJob {
  id: string;
  isNew: boolean;
}

export async function adapt(
  file: Blob,
  rate: number,
  effort: number,
  calling: Calling,
): Promise<PostedJob> {
  const query = `rate=${rate}&effort=${effort}&priority=${PRIORITY}`;
  const response = await post(`adapt?${query}`, file, calling);
  const { id, priority, created_at } = (await response.json()) as {
    id: string;
    priority: number;
    created_at: string;
  };
  const ageMs = Date.parse(response.headers.get("Date") ?? "") - Date.parse(created_at);
  return { id, isNew: priority === PRIORITY && ageMs < NEW_MS };
}

export async function cancelJob(id: string, calling: Calling): Promise<Job> {
  const response = await ask(`jobs/${id}`, { method: "DELETE" }, calling);
  return (await response.json()) as Job;
}

/** The best stream of a job so far. Refused as "job-unfinished" where there is none yet. */
export async function jobStream(id: string, calling: Calling): Promise<Compressed> {
  return compressedOf(await ask(`jobs/${id}/stream`, {}, calling));
}

/** The tunes of the model that compresses for the page, which is the first of the service. */
export async function tunes(calling: Calling): Promise<Set<string>> {
  const response = await ask("models", {}, calling);
  const { models } = (await response.json()) as { models: { rates: { tune: string }[] }[] };
  return new Set(models[0]?.rates.map((rate) => rate.tune));
}

/** Whether the service takes adaptation jobs. */
export async function hasJobs(calling: Calling): Promise<boolean> {
  const response = await ask("readyz", {}, calling);
  return ((await response.json()) as { jobs: string }).jobs !== "off";
}

/** The address of a path of the service, as other programs need it. */
export function addressOf(path: string): string {
  return new URL(path, document.baseURI).href;
}

function post(path: string, body: Blob, calling: Calling): Promise<Response> {
  return ask(path, { method: "POST", body }, calling);
}

/** Ask the service; a busy one is asked again after the time that it names. */
async function ask(path: string, init: RequestInit, calling: Calling): Promise<Response> {
  for (let tries = 1; ; tries++) {
    const response = await reach(path, { ...init, signal: calling.signal });
    if (response.ok) return response;
    const wait = Number(response.headers.get("Retry-After"));
    const busy = response.status === 503 || response.status === 429;
    if (!busy || !(wait > 0) || tries === MAX_TRIES) throw await refusalOf(response);
    calling.onWait?.(wait);
    await pause(wait * 1000, calling.signal);
  }
}

async function reach(path: string, init: RequestInit): Promise<Response> {
  try {
    return await fetch(addressOf(path), init);
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new Away("The service does not answer. It may have been stopped.");
  }
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason as Error);
    });
  });
}

async function compressedOf(response: Response): Promise<Compressed> {
  const { headers } = response;
  const stream = new Blob([await response.arrayBuffer()], { type: "application/vnd.rankpress" });
  return {
    stream,
    rate: headers.get("X-Rankpress-Rate") ?? "",
    bpp: numberOf(headers, "X-Rankpress-Bpp") ?? 0,
    psnr: numberOf(headers, "X-Rankpress-Psnr"),
    graphics: numberOf(headers, "X-Rankpress-Graphics") ?? 0,
    notes: headers.get("X-Rankpress-Notes") ?? "",
    times: timesOf(headers.get("Server-Timing") ?? ""),
  };
}

function numberOf(headers: Headers, name: string): number | null {
  const text = headers.get(name);
  if (text === null) return null;
  return text === "inf" ? Infinity : Number(text);
}

function timesOf(header: string): Map<string, number> {
  const parts = header.matchAll(/([\w-]+);dur=([\d.]+)/g);
  return new Map([...parts].map((part) => [part[1] ?? "", Number(part[2])]));
}

interface ProblemDocument {
  type?: string;
  title?: string;
  detail?: string;
  found?: number;
}

async function refusalOf(response: Response): Promise<Refused> {
  const text = await response.text();
  let document: ProblemDocument = {};
  try {
    document = JSON.parse(text) as ProblemDocument;
  } catch {
    // A proxy's answer is not a problem document; the status says what is known.
  }
  const name = document.type?.split(":").at(-1) ?? "";
  const general = document.title ?? `The service answered ${response.status}`;
  return new Refused(name, PLAIN[name] ?? sentences(general, document.detail));
}

/** Problems whose titles do not say enough to a visitor. */
const PLAIN: Record<string, string> = {
  "bad-image": "This file is not a picture that the service can read.",
  "jobs-off": "This service does not adapt to pictures: it was started without jobs.",
  saturated: "The service has too much to do. Try again later.",
  "too-many-requests": "You have asked for too much at a time. Try again in a moment.",
  "not-ready": "The service is starting. Try again in a moment.",
};

function sentences(title: string, detail: string | undefined): string {
  return detail ? `${title}: ${detail}.`.replace(/\.\.$/, ".") : `${title}.`;
}
