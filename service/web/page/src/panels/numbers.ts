/** The table of sizes and qualities, and the sentences below it. */

import { byId, create } from "../dom.js";
import { NAMES, OTHERS, SIDES, type Side, type State } from "../state.js";
import type { Trial } from "../view/trial.js";

/** Show what is known of a trial. */
export function showNumbers(trial: Trial, state: State, busy: boolean, choose: Chooser): void {
  const rows = byId("rows", HTMLElement);
  const focused = document.activeElement?.id;
  const sides = trial.isStream ? (["rankpress"] as const) : SIDES;
  rows.replaceChildren(...sides.map((side) => row(trial, side, state, busy, choose)));
  if (focused) document.getElementById(focused)?.focus();
  byId("summary", HTMLElement).textContent = summary(trial, state);
  byId("times", HTMLElement).textContent = times(trial);
  byId("notes", HTMLElement).textContent = notes(trial);
}

/** Told which picture is to be shown on which side. */
export type Chooser = (place: "a" | "b", side: Side) => void;

function row(trial: Trial, side: Side, state: State, busy: boolean, choose: Chooser): Element {
  const shown = trial.picture(side) !== null;
  return create(
    "tr",
    { class: side },
    ...(["a", "b"] as const).map((place) =>
      create("td", {}, radio(place, side, state[place] === side, shown, choose)),
    ),
    create("th", { scope: "row" }, NAMES[side]),
    ...cells(trial, side, busy),
  );
}

function radio(
  place: "a" | "b",
  side: Side,
  checked: boolean,
  enabled: boolean,
  choose: Chooser,
): Element {
  const input = create("input", {
    type: "radio",
    name: `side-${place}`,
    id: `${place}-${side}`,
    "aria-label": `Show ${NAMES[side]} as ${place.toUpperCase()}`,
  });
  input.checked = checked;
  input.disabled = !enabled;
  input.addEventListener("change", () => choose(place, side));
  return input;
}

function cells(trial: Trial, side: Side, busy: boolean): Element[] {
  const entry = trial.entry(side);
  if (entry === undefined) return [create("td", { colspan: "4" }, busy ? "…" : "—")];
  if ("reason" in entry) return [create("td", { colspan: "4", class: "reason" }, entry.reason)];
  const texts = [
    entry.file.size.toLocaleString("en"),
    trial.bpp(entry.file)?.toFixed(3) ?? "—",
    side === "original" ? "" : decibels(entry.psnr),
    side === "original" ? "" : similarity(entry.msSsim),
  ];
  return texts.map((text) => create("td", { class: "n" }, text));
}

/** A PSNR as text. */
export function decibels(psnr: number | null): string {
  if (psnr === null) return "—";
  return psnr === Infinity ? "exact" : psnr.toFixed(2);
}

function similarity(msSsim: number | null | undefined): string {
  if (msSsim === undefined) return "…";
  return msSsim === null ? "—" : msSsim.toFixed(4);
}

function summary(trial: Trial, { match }: State): string {
  const ours = trial.entry("rankpress");
  if (ours === undefined || "reason" in ours || ours.psnr === null) return "";
  if (match === "psnr" && ours.psnr === Infinity) {
    return "The stream is exact; the other formats have its bytes.";
  }
  const atPsnr = trial.matched === "psnr";
  const parts: string[] = [];
  for (const format of OTHERS) {
    const other = trial.entry(format);
    if (other === undefined || "reason" in other || other.psnr === null) continue;
    if (atPsnr) parts.push(`${NAMES[format]} ${percent(other.file.size / ours.file.size - 1)}`);
    else if (other.psnr !== Infinity && ours.psnr !== Infinity) {
      parts.push(`${NAMES[format]} ${signed(other.psnr - ours.psnr, 2)} dB`);
    }
  }
  if (parts.length === 0) return "";
  return `${atPsnr ? "Bytes at the same PSNR" : "PSNR at the same bytes"}: ${parts.join(", ")}.`;
}

function percent(share: number): string {
  return `${signed(100 * share, 0)} %`;
}

function signed(value: number, digits: number): string {
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;
}

const PARTS: Record<string, string> = {
  queue: "waiting",
  swap: "change of weights",
  net: "networks",
  code: "coding",
  graphics: "graphics layer",
  check: "check",
  read: "reading",
  write: "writing",
};

function times(trial: Trial): string {
  const { stream, decoded } = trial;
  if (stream === null || decoded === null) return "";
  const parts = [...stream.times].filter(([name, ms]) => name in PARTS && ms >= 0.5);
  const sum = parts.reduce((total, [, ms]) => total + ms, 0);
  const list = parts.map(([name, ms]) => `${PARTS[name] ?? name} ${ms.toFixed(0)}`).join(", ");
  const compressed = sum > 0 ? `Compressed in ${sum.toFixed(0)} ms (${list}). ` : "";
  const where = decoded.where === "browser" ? "in this browser" : "by the service";
  return `${compressed}Decoded ${where} in ${decoded.ms.toFixed(0)} ms.`;
}

function notes(trial: Trial): string {
  const { stream } = trial;
  if (stream === null) return "";
  const lossless = stream.rate === "lossless";
  const texts = [
    lossless ? "Stored exactly as a whole" : stream.rate !== "" ? `Rate ${stream.rate}` : "",
    !lossless && stream.graphics > 0
      ? `${(100 * stream.graphics).toFixed(0)} % stored exactly`
      : "",
    !trial.isStream && trial.picture("original") === null
      ? "this browser cannot show the original"
      : "",
    stream.notes,
  ];
  return texts.filter((text) => text !== "").join("; ");
}
