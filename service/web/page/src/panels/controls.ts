/** The form of settings and the state: each shows what the other says. */

import { byId, Choice } from "../dom.js";
import { type Aim, roundRate, type State, type Tune } from "../state.js";

type Target = Exclude<Aim, "rate" | "lossless">;

/** Units and steps of the targets. */
const TARGETS: Record<Target, { unit: string; step: string; least: string }> = {
  target_bpp: { unit: "bpp", step: "0.01", least: "0.01" },
  max_bytes: { unit: "bytes", step: "1", least: "1" },
  target_psnr: { unit: "dB", step: "0.1", least: "1" },
};

export class Controls {
  readonly #state: State;
  readonly #aim = byId("aim", HTMLSelectElement);
  readonly #target = byId("target", HTMLInputElement);
  readonly #rate = byId("rate", HTMLInputElement);
  readonly #number = byId("rate-number", HTMLInputElement);
  readonly #tune: Choice<Tune>;

  /**
   * @param state is read and written
   * @param onChange is told when a value is settled: the slider was let go, a field was left
   */
  constructor(state: State, onChange: () => void) {
    this.#state = state;
    const change = (act: () => void) => () => {
      act();
      this.show();
      onChange();
    };
    byId("settings", HTMLFormElement).addEventListener("submit", (event) => event.preventDefault());
    this.#aim.addEventListener(
      "change",
      change(() => (state.aim = this.#aim.value as Aim)),
    );
    this.#rate.addEventListener("input", () => (this.#number.value = this.#rate.value));
    for (const input of [this.#rate, this.#number]) {
      input.addEventListener(
        "change",
        change(() => (state.rate = this.#rateOf(input))),
      );
    }
    this.#target.addEventListener(
      "change",
      change(() => this.#takeTarget()),
    );
    this.#tune = new Choice<Tune>("tune", (tune) => change(() => (state.tune = tune))());
    this.show();
  }

  /** Allow only the tunes that the service has. */
  setTunes(tunes: ReadonlySet<string>): void {
    for (const tune of ["psnr", "ms-ssim"] as const) this.#tune.enable(tune, tunes.has(tune));
  }

  show(): void {
    const { aim, rate, tune } = this.#state;
    this.#aim.value = aim;
    this.#rate.value = this.#number.value = String(rate);
    this.#tune.value = tune;
    byId("rate-row", HTMLElement).hidden = aim !== "rate";
    byId("tune-row", HTMLElement).hidden = aim === "lossless";
    const isTarget = aim !== "rate" && aim !== "lossless";
    this.#target.hidden = !isTarget;
    const details = isTarget ? TARGETS[aim] : null;
    byId("unit", HTMLElement).textContent = details?.unit ?? "";
    if (isTarget && details !== null) {
      this.#target.value = String(this.#state[aim]);
      this.#target.step = details.step;
      this.#target.min = details.least;
    }
  }

  /** The rate of a field; what is no number leaves the rate as it is. */
  #rateOf(input: HTMLInputElement): number {
    const value = input.valueAsNumber;
    return Number.isFinite(value) ? roundRate(value) : this.#state.rate;
  }

  #takeTarget(): void {
    const { aim } = this.#state;
    const value = this.#target.valueAsNumber;
    if (aim === "rate" || aim === "lossless" || !(value > 0)) return;
    this.#state[aim] = aim === "max_bytes" ? Math.max(1, Math.round(value)) : value;
  }
}
