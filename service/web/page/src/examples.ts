/** Pictures to try, which the service has beside the page. */

import { byId, create } from "./dom.js";

/** Names and files; the photograph is CC0, the others are drawn by the project's generator. */
const EXAMPLES: Readonly<Record<string, string>> = {
  photograph: "photograph.jpg",
  screenshot: "screenshot.png",
  chart: "chart.png",
  drawing: "drawing.png",
};

/** Show a button for every example. */
export function showExamples(onChoose: (name: string) => void): void {
  const buttons = Object.entries(EXAMPLES).map(([name, file]) => {
    const picture = create("img", { src: addressOf(file), alt: "", width: "120", height: "80" });
    const button = create("button", { type: "button", class: "example" }, picture, name);
    button.addEventListener("click", () => onChoose(name));
    return button;
  });
  byId("examples", HTMLElement).append(...buttons);
}

/** Fetch an example by its name. Throws if there is none. */
export async function fetchExample(name: string): Promise<File> {
  const url = exampleUrl(name);
  const response = await fetch(url);
  if (!response.ok) throw new Error(`The example cannot be fetched: ${response.status}.`);
  const type = response.headers.get("Content-Type") ?? "";
  return new File([await response.arrayBuffer()], url.replace(/^.*\//, ""), { type });
}

/** The address of an example. Throws if there is none of that name. */
export function exampleUrl(name: string): string {
  const file = EXAMPLES[name];
  if (file === undefined) throw new Error(`There is no example named ${name}.`);
  return addressOf(file);
}

function addressOf(file: string): string {
  return new URL(`./examples/${file}`, import.meta.url).href;
}
