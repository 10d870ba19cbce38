/** Watching an adaptation job: its events, and a curve of size and quality. */

import { createSvg } from "../dom.js";
import { addressOf, type Job } from "../service.js";

/** Size and quality after a step of a job. */
export interface Point {
  step: number;
  bpp: number;
  psnr: number;
}

/** Events of a job, until it has ended or is no longer watched. */
export class JobEvents {
  readonly #source: EventSource;

  /**
   * @param onJob is told of every change; the last one has ended
   * @param onLost is told when the service no longer knows the job or does not answer
   */
  constructor(id: string, onJob: (job: Job) => void, onLost: () => void) {
    this.#source = new EventSource(addressOf(`jobs/${id}/events`));
    const read = (event: MessageEvent<string>): void => onJob(JSON.parse(event.data) as Job);
    this.#source.addEventListener("message", read);
    this.#source.addEventListener("end", (event) => {
      this.close();
      read(event as MessageEvent<string>);
    });
    this.#source.addEventListener("error", () => {
      if (this.#source.readyState === EventSource.CLOSED) onLost();
    });
  }

  close(): void {
    this.#source.close();
  }
}

/** Whether a job has ended, in whatever way. */
export function hasEnded(job: Job): boolean {
  return job.status !== "queued" && job.status !== "running";
}

const WIDTH = 320;
const HEIGHT = 64;
const PAD = 4;

/** The curves of a job: bits per pixel above, dB below, over the steps. */
export function drawCurves(into: HTMLElement, points: readonly Point[]): void {
  into.replaceChildren(
    curve("bpp", points, (point) => point.bpp, 4),
    curve("dB", points, (point) => point.psnr, 2),
  );
}

function curve(
  unit: string,
  points: readonly Point[],
  value: (point: Point) => number,
  digits: number,
): Element {
  const values = points.map(value);
  const low = Math.min(...values);
  const high = Math.max(...values);
  const last = points.at(-1)?.step ?? 0;
  const x = (step: number): number => PAD + ((WIDTH - 2 * PAD) * step) / Math.max(1, last);
  const y = (v: number): number =>
    high === low ? HEIGHT / 2 : HEIGHT - PAD - ((HEIGHT - 2 * PAD) * (v - low)) / (high - low);
  const line = points.map((point) => `${x(point.step).toFixed(1)},${y(value(point)).toFixed(1)}`);
  const first = values[0] ?? 0;
  const now = values.at(-1) ?? 0;
  const label = `${unit}: from ${first.toFixed(digits)} to ${now.toFixed(digits)}`;
  const svg = createSvg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label, class: `curve ${unit}` },
    createSvg("line", { x1: `${PAD}`, x2: `${WIDTH - PAD}`, y1: `${y(first)}`, y2: `${y(first)}` }),
    createSvg("polyline", { points: line.join(" ") }),
    createSvg("circle", { cx: `${x(last)}`, cy: `${y(now)}`, r: "3" }),
  );
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  const change = now - first;
  caption.textContent = `${now.toFixed(digits)} ${unit} (${change < 0 ? "−" : "+"}${Math.abs(change).toFixed(digits)})`;
  figure.append(caption, svg);
  return figure;
}
