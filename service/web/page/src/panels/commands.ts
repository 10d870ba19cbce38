/** The same work as commands for other programs: curl, the command line, Python. */

import { byId, create } from "../dom.js";
import { addressOf } from "../service.js";
import { compressQuery, type State } from "../state.js";

/** What is to be done, to which file. */
export interface Task {
  state: State;
  /** Name of the image file. */
  name: string;
  /** Address of the image file, of an example. */
  url: string | null;
}

/** Show the commands for a task. */
export function showCommands(task: Task): void {
  const commands = commandsOf(task);
  const blocks = Object.entries(commands).map(([title, text]) => block(title, text));
  byId("command-list", HTMLElement).replaceChildren(...blocks);
}

function commandsOf(task: Task): Record<string, string> {
  if (task.name.endsWith(".rkp")) return decompressCommands(task);
  return task.state.job === "" ? compressCommands(task) : adaptCommands(task);
}

function decompressCommands(task: Task): Record<string, string> {
  const picture = task.name.replace(/rkp$/, "png");
  const body = quote(`@${task.name}`);
  const address = quote(addressOf("decompress?format=png"));
  return {
    curl: `curl -f --data-binary ${body} ${address} -o ${path(picture)}`,
    "Command line": `rankpress decompress ${path(task.name)} ${path(picture)}`,
    Python: python(`Image.open(${JSON.stringify(task.name)}).save(${JSON.stringify(picture)})`),
  };
}

function compressCommands(task: Task): Record<string, string> {
  const { state, url } = task;
  const stream = streamName(task.name);
  const address = quote(addressOf(`compress?${compressQuery(state)}`));
  const body = url === null ? `@${task.name}` : "@-";
  const curl = `curl -f --data-binary ${quote(body)} ${address} -o ${path(stream)}`;
  const options = [...compressQuery(state)].map(([name, value]) => ` --${dashed(name)} ${value}`);
  const words = [...compressQuery(state)].map(([name, value]) => `, ${name}=${literal(value)}`);
  return {
    curl: url === null ? curl : `curl -sf ${quote(url)} | ${curl}`,
    "Command line": `${fetched(task)}rankpress compress ${path(task.name)} ${path(stream)}${options.join("")}`,
    Python: python(
      `Image.open(${JSON.stringify(task.name)}).save(${JSON.stringify(stream)}${words.join("")})`,
    ),
  };
}

function adaptCommands(task: Task): Record<string, string> {
  const { rate, effort, job } = task.state;
  const stream = streamName(task.name);
  const options = `--rate ${rate} --effort ${effort}`;
  return {
    curl: `curl -f ${quote(addressOf(`jobs/${job}/stream`))} -o ${path(stream)}`,
    "Command line": `${fetched(task)}rankpress adapt ${path(task.name)} ${path(stream)} ${options}`,
  };
}

/** The name of the stream of an image file. */
export function streamName(name: string): string {
  return `${name.replace(/\.\w+$/, "")}.rkp`;
}

/** A statement for Python after the imports that it needs. */
function python(statement: string): string {
  return `import rankpress_pillow\nfrom PIL import Image\n${statement}`;
}

/** A command that fetches an example first. */
function fetched(task: Task): string {
  return task.url === null ? "" : `curl -fO ${quote(task.url)}\n`;
}

/** A file's name as an argument, which is never an option. */
function path(name: string): string {
  return quote(name.startsWith("-") ? `./${name}` : name);
}

/** A word as a POSIX shell reads it. */
export function quote(word: string): string {
  return /^[\w./:@-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

function dashed(name: string): string {
  return name.replaceAll("_", "-");
}

function literal(value: string): string {
  return Number.isNaN(Number(value)) ? JSON.stringify(value) : value;
}

function block(title: string, text: string): Element {
  const code = create("code", {}, text);
  const button = create("button", { type: "button", "aria-label": `Copy: ${title}` }, "Copy");
  button.addEventListener("click", () => {
    void copy(text, code).then(() => {
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
  });
  const heading = create("div", { class: "command-title" }, create("span", {}, title), button);
  const pre = create("pre", { tabindex: "0", "aria-label": title, role: "region" }, code);
  return create("div", { class: "command" }, heading, pre);
}

/** Copy a text; where a page may not, as over plain HTTP, through the selection. */
async function copy(text: string, shown: Element): Promise<void> {
  if (navigator.clipboard !== undefined) return navigator.clipboard.writeText(text);
  getSelection()?.selectAllChildren(shown);
  document.execCommand("copy");
}
