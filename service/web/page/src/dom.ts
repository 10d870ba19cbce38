/** Small helpers for the document. */

/** The element of an id. Throws if the page lacks it or it is of another kind. */
export function byId<T extends Element>(id: string, kind: new () => T): T {
  const element = document.getElementById(id);
  if (!(element instanceof kind)) throw new Error(`the page has no ${kind.name} #${id}`);
  return element;
}

/** A new element with attributes and children. A value of null leaves an attribute out. */
export function create<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Record<string, string | null> = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  setAttributes(element, attributes);
  element.append(...children);
  return element;
}

/** A new element of SVG with attributes and children. */
export function createSvg<K extends keyof SVGElementTagNameMap>(
  tag: K,
  attributes: Record<string, string | null> = {},
  ...children: (Node | string)[]
): SVGElementTagNameMap[K] {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  setAttributes(element, attributes);
  element.append(...children);
  return element;
}

function setAttributes(element: Element, attributes: Record<string, string | null>): void {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null) element.setAttribute(name, value);
  }
}

/** The radio buttons of a name: which one is chosen, and what to do when another one is. */
export class Choice<T extends string> {
  readonly #buttons: HTMLInputElement[];

  constructor(name: string, onChange: (value: T) => void) {
    const all = document.querySelectorAll<HTMLInputElement>(`input[name="${name}"]`);
    this.#buttons = [...all];
    for (const button of this.#buttons) {
      button.addEventListener("change", () => onChange(button.value as T));
    }
  }

  /** Choose a value without an event. */
  set value(value: T) {
    for (const button of this.#buttons) button.checked = button.value === value;
  }

  /** Let a value be chosen or not. */
  enable(value: T, enabled: boolean): void {
    for (const button of this.#buttons) if (button.value === value) button.disabled = !enabled;
  }
}

/** Save a file as a browser's download. */
export function saveAs(blob: Blob, name: string): void {
  const url = URL.createObjectURL(blob);
  create("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
