/** Several files: each compressed, a table with totals, and all streams in one zip. */

import { downloadZip } from "client-zip";
import { byId, create, saveAs } from "../dom.js";
import { type Calling, type Compressed, compress } from "../service.js";
import { compressQuery, type State } from "../state.js";
import { streamName } from "./commands.js";
import { decibels } from "./numbers.js";

/** Requests at a time; a service gives one client only a share of its places. */
const AT_A_TIME = 2;

interface Item {
  file: File;
  /** Undefined until it is there; a text says why there is none. */
  outcome: Compressed | string | undefined;
}

export class Batch {
  readonly #items: Item[];
  readonly #onOpen: (file: File) => void;

  /** @param onOpen is told which file is to be looked at */
  constructor(files: readonly File[], onOpen: (file: File) => void) {
    this.#items = files.map((file) => ({ file, outcome: undefined }));
    this.#onOpen = onOpen;
    this.#show();
  }

  /** Compress all files; an error of one does not end the others. */
  async run(state: State, calling: Calling): Promise<void> {
    for (const item of this.#items) item.outcome = undefined;
    this.#show();
    const waiting = [...this.#items];
    const query = compressQuery(state);
    const work = async (): Promise<void> => {
      for (let item = waiting.shift(); item !== undefined; item = waiting.shift()) {
        await this.#compress(item, query, calling);
      }
    };
    await Promise.all(Array.from({ length: AT_A_TIME }, work));
  }

  async #compress(item: Item, query: URLSearchParams, calling: Calling): Promise<void> {
    try {
      item.outcome = await compress(item.file, query, calling);
    } catch (error) {
      calling.signal.throwIfAborted();
      item.outcome = error instanceof Error ? error.message : String(error);
    }
    this.#show();
  }

  /** Items that have become streams. */
  get #done(): { file: File; outcome: Compressed }[] {
    return this.#items.flatMap(({ file, outcome }) =>
      typeof outcome === "object" ? [{ file, outcome }] : [],
    );
  }

  #show(): void {
    const heads = ["File", "Bytes", "Stream bytes", "bpp", "PSNR, dB"];
    const table = create(
      "table",
      {},
      create("caption", {}, `${this.#items.length} files, ${this.#done.length} compressed`),
      create("thead", {}, create("tr", {}, ...heads.map((head, i) => headCell(head, i > 0)))),
      create("tbody", {}, ...this.#items.map((item) => this.#row(item))),
      create("tfoot", {}, this.#totals()),
    );
    const save = create(
      "button",
      { type: "button", id: "save-zip", class: "main" },
      "Download all (.zip)",
    );
    save.disabled = this.#done.length === 0;
    save.addEventListener("click", () => void this.#save());
    byId("batch", HTMLElement).replaceChildren(table, create("p", {}, save));
  }

  #row({ file, outcome }: Item): Element {
    const open = create("button", { type: "button", class: "link" }, file.name);
    open.addEventListener("click", () => this.#onOpen(file));
    const name = create("th", { scope: "row" }, open);
    const size = numberCell(file.size.toLocaleString("en"));
    if (outcome === undefined)
      return create("tr", {}, name, size, create("td", { colspan: "3" }, "…"));
    if (typeof outcome === "string") {
      return create("tr", {}, name, size, create("td", { colspan: "3", class: "reason" }, outcome));
    }
    const texts = [
      outcome.stream.size.toLocaleString("en"),
      outcome.bpp.toFixed(3),
      decibels(outcome.psnr),
    ];
    return create("tr", {}, name, size, ...texts.map(numberCell));
  }

  /** Sums of sizes, bits per pixel of all pixels, and the mean PSNR of those that are not exact. */
  #totals(): Element {
    const done = this.#done;
    const before = done.reduce((sum, { file }) => sum + file.size, 0);
    const after = done.reduce((sum, { outcome }) => sum + outcome.stream.size, 0);
    const pixels = done.reduce(
      (sum, { outcome }) => sum + (8 * outcome.stream.size) / outcome.bpp,
      0,
    );
    const values = done.flatMap(({ outcome }) => outcome.psnr ?? []).filter(Number.isFinite);
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    return create(
      "tr",
      {},
      create("th", { scope: "row" }, "Total"),
      numberCell(before.toLocaleString("en")),
      numberCell(`${after.toLocaleString("en")}${before > 0 ? ` (${share(after, before)})` : ""}`),
      numberCell(pixels > 0 ? ((8 * after) / pixels).toFixed(3) : "—"),
      numberCell(values.length > 0 ? `mean ${mean.toFixed(2)}` : "—"),
    );
  }

  async #save(): Promise<void> {
    const names = new Set<string>();
    const files = this.#done.map(({ file, outcome }) => {
      const name = unusedName(streamName(file.name), names);
      names.add(name);
      return { name, input: outcome.stream, lastModified: new Date() };
    });
    saveAs(await downloadZip(files).blob(), "rankpress.zip");
  }
}

function unusedName(name: string, used: ReadonlySet<string>): string {
  for (let count = 1; ; count++) {
    const candidate = count === 1 ? name : name.replace(/\.rkp$/, `-${count}.rkp`);
    if (!used.has(candidate)) return candidate;
  }
}

function share(after: number, before: number): string {
  return `${((100 * after) / before).toFixed(0)} %`;
}

function headCell(text: string, isNumber: boolean): Element {
  return create("th", { scope: "col", class: isNumber ? "n" : null }, text);
}

function numberCell(text: string): Element {
  return create("td", { class: "n" }, text);
}
