/** Work that the visitor waits for: one piece at a time, with its status and its errors. */

import { byId } from "./dom.js";
import type { Calling } from "./service.js";

export class Work {
  readonly #onChange: () => void;
  #controller = new AbortController();
  #busy = false;

  /** @param onChange is told when work begins and ends */
  constructor(onChange: () => void) {
    this.#onChange = onChange;
  }

  /** Whether something is being done. */
  get busy(): boolean {
    return this.#busy;
  }

  /** Ends with the present work. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** What calls of the service need that belong to the present work. */
  get calling(): Calling {
    const onWait = (seconds: number): void =>
      this.say(`The service is busy; it is asked again in ${seconds} s.`);
    return { signal: this.signal, onWait };
  }

  /** Do work in place of what was being done; it returns what the status says at its end. */
  start(act: () => Promise<string>): void {
    this.abort();
    const { signal } = this;
    this.#busy = true;
    this.say("Working…");
    this.#onChange();
    void act()
      .catch((error: unknown) => {
        if (!signal.aborted) this.fail(error);
        return "";
      })
      .then((status) => {
        if (signal.aborted) return;
        this.#busy = false;
        this.say(status);
        this.#onChange();
      });
  }

  /** End the present work, and forget its error. */
  abort(): void {
    this.#controller.abort();
    this.#controller = new AbortController();
    byId("error", HTMLElement).hidden = true;
  }

  /** Say what is being done; screen readers read it out. */
  say(text: string): void {
    byId("status", HTMLElement).textContent = text;
  }

  /** Show an error. */
  fail(error: unknown): void {
    const text = error instanceof Error ? error.message : String(error);
    byId("error-text", HTMLElement).textContent = text;
    byId("error", HTMLElement).hidden = false;
  }
}
