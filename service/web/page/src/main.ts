/** The page at /: choose pictures, compress them, and judge what became of them. */

import { byId, Choice } from "./dom.js";
import { exampleUrl, fetchExample, showExamples } from "./examples.js";
import { listenForFiles } from "./intake.js";
import { showLegend, showSections, showView } from "./layout.js";
import { Measuring } from "./measure/measuring.js";
import { Adaptation } from "./panels/adaptation.js";
import { Batch } from "./panels/batch.js";
import { showCommands } from "./panels/commands.js";
import { Controls } from "./panels/controls.js";
import { showNumbers } from "./panels/numbers.js";
import { savePicture, saveStream } from "./panels/saving.js";
import { type Compressed, compress, givenStream, hasJobs, tunes } from "./service.js";
import {
  compressQuery,
  formatState,
  type Match,
  type Mode,
  parseState,
  type State,
} from "./state.js";
import { drawScale, type Heat, heatOf } from "./view/heat.js";
import { LocalDecoder } from "./view/local.js";
import { Trial } from "./view/trial.js";
import { Viewer } from "./view/viewer.js";
import { Work } from "./work.js";

/** Milliseconds after which a change is in the URL. */
const SAVE_MS = 200;

class App {
  readonly #state = parseState(location.hash);
  readonly #work = new Work(() => this.#changed());
  readonly #measuring = new Measuring();
  readonly #decoder = new LocalDecoder();
  readonly #viewer = new Viewer(this.#state, () => this.#showState());
  readonly #controls = new Controls(this.#state, () => this.#changeSettings());
  readonly #mode = new Choice<Mode>("mode", (mode) => this.#set({ mode }));
  readonly #match = new Choice<Match>("match", (match) => {
    this.#set({ match });
    this.#start(() => this.#compareOthers());
  });
  readonly #adaptation = new Adaptation({
    begin: () => this.#work.abort(),
    stream: (stream) => this.#start(() => this.#showStream(stream)),
    ended: (stream) => this.#start(() => this.#endJob(stream)),
    changed: (job) => this.#set({ job }),
    failed: (error) => this.#work.fail(error),
  });
  #trial: Trial | null = null;
  #batch: Batch | null = null;
  #heat: { of: Compressed; heat: Heat } | null = null;
  #hasJobs = false;
  #saving = 0;

  start(): void {
    listenForFiles((files) => this.#take(files));
    showExamples((name) => void this.#openExample(name));
    this.#listen();
    drawScale(byId("scale", HTMLCanvasElement));
    this.#changed();
    void this.#askService();
    if (this.#state.example !== "") void this.#openExample(this.#state.example, true);
  }

  #listen(): void {
    const on = (id: string, act: () => unknown): void =>
      byId(id, HTMLButtonElement).addEventListener("click", act);
    on("zoom-in", () => this.#viewer.zoomBy(1));
    on("zoom-out", () => this.#viewer.zoomBy(-1));
    on("again", () => ((this.#trial ?? this.#batch) ? this.#changeSettings() : location.reload()));
    on("all-files", () => this.#showBatch());
    on("save-stream", () => this.#trial && saveStream(this.#trial));
    on("save-picture", () => this.#trial && void savePicture(this.#trial));
    on("adapt-start", () => this.#adapt());
    const zoom = byId("zoom", HTMLSelectElement);
    zoom.addEventListener("change", () => this.#viewer.zoomTo(Number(zoom.value)));
    const gain = byId("gain", HTMLSelectElement);
    gain.addEventListener("change", () => this.#set({ gain: Number(gain.value) }));
    const effort = byId("effort", HTMLSelectElement);
    effort.addEventListener("change", () => this.#set({ effort: Number(effort.value) }));
    const heat = byId("heat", HTMLInputElement);
    heat.addEventListener("change", () => this.#set({ heat: heat.checked }));
    const local = byId("local", HTMLInputElement);
    local.addEventListener("change", () => {
      this.#set({ local: local.checked });
      const stream = this.#trial?.stream;
      if (stream) this.#start(() => this.#showStream(stream));
    });
    document.addEventListener("keydown", (event) => this.#press(event));
    window.addEventListener("hashchange", () => location.reload());
  }

  /** Ask what the service offers; without an answer the page shows everything. */
  async #askService(): Promise<void> {
    const calling = { signal: AbortSignal.timeout(20_000) };
    try {
      this.#controls.setTunes(await tunes(calling));
      this.#hasJobs = await hasJobs(calling);
    } catch (error) {
      this.#work.fail(error);
    }
    this.#changed();
  }

  // Pictures

  #take(files: File[]): void {
    this.#set({ example: "", job: "" });
    this.#adaptation.leave();
    if (files.length === 1 && files[0]) {
      this.#batch = null;
      this.#open(files[0]);
    } else if (files.length > 1) {
      this.#batch = new Batch(files, (file) => this.#open(file));
      this.#showBatch();
    }
  }

  /** @param isLink whether the rest of the state is to be kept, because a link gave it */
  async #openExample(name: string, isLink = false): Promise<void> {
    try {
      const file = await fetchExample(name);
      this.#batch = null;
      this.#set(isLink ? { example: name } : { example: name, job: "" });
      if (!isLink) this.#adaptation.leave();
      this.#open(file);
    } catch (error) {
      this.#work.fail(error);
    }
  }

  #open(file: File): void {
    const before = this.#trial;
    const trial = new Trial(file, this.#measuring, () => {
      if (this.#trial === trial) this.#changed();
    });
    this.#trial = trial;
    before?.close();
    this.#start(async () => {
      const { signal } = this.#work;
      if (!trial.isStream) await trial.open();
      signal.throwIfAborted();
      if (this.#state.job !== "") this.#adaptation.watch(this.#state.job);
      else await this.#compress();
    });
  }

  #showBatch(): void {
    const before = this.#trial;
    this.#trial = null;
    before?.close();
    const batch = this.#batch;
    if (batch !== null) this.#start(() => batch.run(this.#state, this.#work.calling));
  }

  // Work

  #changeSettings(): void {
    this.#set({ job: "" });
    this.#adaptation.leave();
    if (this.#trial !== null) this.#start(() => this.#compress());
    else this.#showBatch();
  }

  async #compress(): Promise<void> {
    const trial = this.#trial;
    if (trial === null) return;
    if (trial.isStream) return this.#showStream(givenStream(trial.file));
    this.#work.say("Compressing…");
    const stream = await compress(trial.file, compressQuery(this.#state), this.#work.calling);
    await this.#showStream(stream);
    await this.#compareOthers();
  }

  async #showStream(stream: Compressed): Promise<void> {
    this.#work.say("Decoding…");
    const decoder = this.#state.local ? this.#decoder : null;
    await this.#trial?.setStream(stream, decoder, this.#work.calling);
    void this.#measureBits();
  }

  async #compareOthers(): Promise<void> {
    if (this.#trial?.isStream === false) {
      this.#work.say(`${this.#outcome()} Coding other formats…`);
      await this.#trial.compareOthers(this.#state.match, this.#work.calling);
    }
  }

  /** Make the heat map of the stream that is shown, if it is to be seen. */
  async #measureBits(): Promise<void> {
    const stream = this.#trial?.stream;
    if (!this.#state.heat || !stream || this.#heat?.of === stream) return;
    const { signal } = this.#work;
    try {
      const bits = await this.#decoder.bits(stream.stream, signal);
      this.#heat = { of: stream, heat: heatOf(bits) };
      this.#changed();
    } catch (error) {
      if (!signal.aborted) this.#work.fail(error);
    }
  }

  #adapt(): void {
    const trial = this.#trial;
    if (trial === null) return;
    const shown = Number(trial.stream?.rate);
    const rate = this.#state.aim === "rate" || !(shown >= 1) ? this.#state.rate : shown;
    this.#set({ rate, aim: "rate" });
    this.#controls.show();
    this.#adaptation.start(trial.file, rate, this.#state.effort, this.#work.calling);
  }

  /** Show the last stream of a job; the picture is compressed where there is neither. */
  async #endJob(stream: Compressed | null): Promise<void> {
    if (stream !== null) await this.#showStream(stream);
    else {
      this.#set({ job: "" });
      if (this.#trial?.stream === null) return this.#compress();
    }
    await this.#compareOthers();
  }

  /** Do work in place of what was being done. */
  #start(act: () => Promise<void>): void {
    this.#work.start(() => act().then(() => this.#outcome()));
  }

  /** What the last work came to, for the status. */
  #outcome(): string {
    const stream = this.#trial?.stream;
    if (this.#trial?.isStream) return "Decoded.";
    if (!stream) return this.#trial === null && this.#batch !== null ? "All files are done." : "";
    return `Compressed to ${stream.stream.size.toLocaleString("en")} bytes.`;
  }

  // What is shown

  #set(change: Partial<State>): void {
    Object.assign(this.#state, change);
    this.#changed();
    if (change.heat) void this.#measureBits();
  }

  /** Show everything as it is now. */
  #changed(): void {
    const state = this.#state;
    const trial = this.#trial;
    showSections(trial, this.#batch !== null, this.#hasJobs);
    this.#viewer.setPictures(trial?.picture(state.a) ?? null, trial?.picture(state.b) ?? null);
    const current = this.#heat?.of === trial?.stream ? this.#heat : null;
    const heat = state.heat && current !== null ? current.heat : null;
    this.#viewer.setHeat(heat);
    showLegend(heat);
    this.#showState();
    if (trial === null) return;
    showNumbers(trial, state, this.#work.busy, (place, side) => this.#set({ [place]: side }));
    const url = state.example === "" ? null : exampleUrl(state.example);
    showCommands({ state, name: trial.file.name, url });
  }

  /** Show the state in the fields, and soon in the URL; browsers limit how often that may change. */
  #showState(): void {
    const state = this.#state;
    this.#mode.value = state.mode;
    this.#match.value = state.match;
    showView(state);
    clearTimeout(this.#saving);
    this.#saving = setTimeout(() => {
      const hash = formatState(state);
      history.replaceState(
        null,
        "",
        hash === "" ? location.pathname + location.search : `#${hash}`,
      );
    }, SAVE_MS);
  }

  #press(event: KeyboardEvent): void {
    const target = event.target as Element;
    const typing = target.matches('input[type="number"], select');
    if (this.#trial === null || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.toLowerCase();
    if (key === "h") this.#set({ heat: !this.#state.heat });
    else if (!this.#viewer.handleKey(key)) return;
    event.preventDefault();
  }
}

new App().start();
