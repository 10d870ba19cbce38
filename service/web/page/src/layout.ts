/** Which parts of the page are seen, and the fields of the view. */

import { byId } from "./dom.js";
import { type Mode, NAMES, type Side, type State } from "./state.js";
import type { Heat } from "./view/heat.js";
import type { Trial } from "./view/trial.js";

/** Show the parts that there is something for: the beginning, one picture, or several files. */
export function showSections(trial: Trial | null, hasBatch: boolean, hasJobs: boolean): void {
  const one = trial !== null;
  const isStream = trial?.isStream === true;
  const show = (id: string, shown: boolean): void => {
    byId(id, HTMLElement).hidden = !shown;
  };
  show("welcome", !one && !hasBatch);
  show("batch", !one && hasBatch);
  for (const id of ["stage", "toolbar", "numbers", "commands"]) show(id, one);
  for (const id of ["settings", "match"]) show(id, !isStream);
  show("all-files", one && hasBatch);
  show("adapt", one && !isStream && hasJobs);
  byId("save-stream", HTMLButtonElement).disabled = !trial?.stream;
  byId("save-picture", HTMLButtonElement).disabled = !trial?.decoded;
}

/** Show the state of the view in its fields. */
export function showView(state: State): void {
  const { a, b, mode, zoom, gain, heat, local, effort } = state;
  byId("name-a", HTMLElement).textContent = NAMES[a];
  byId("name-b", HTMLElement).textContent = NAMES[b];
  byId("zoom", HTMLSelectElement).value = String(zoom);
  byId("gain", HTMLSelectElement).value = String(gain);
  byId("gain-label", HTMLElement).hidden = mode !== "difference";
  byId("heat", HTMLInputElement).checked = heat;
  byId("local", HTMLInputElement).checked = local;
  byId("effort", HTMLSelectElement).value = String(effort);
  byId("canvas", HTMLElement).setAttribute("aria-label", describe(mode, a, b));
}

/** Show what the colours of a heat map mean; null hides the legend. */
export function showLegend(heat: Heat | null): void {
  byId("legend", HTMLElement).hidden = heat === null;
  if (heat === null) return;
  byId("legend-most", HTMLElement).textContent = `${heat.most.toFixed(0)} bits per block`;
}

/** What the canvas shows, for those who do not see it. */
function describe(mode: Mode, a: Side, b: Side): string {
  if (mode === "a") return NAMES[a];
  if (mode === "b") return NAMES[b];
  if (mode === "difference") return `Difference of ${NAMES[a]} and ${NAMES[b]}`;
  return `${NAMES[a]} on the left of the slider, ${NAMES[b]} on the right`;
}
