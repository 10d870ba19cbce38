/** Starts workers, also where this script comes from another origin than the page. */

/**
 * Starts a worker.
 *
 * @param url address of worker.js; by default it lies beside this script. Browsers refuse workers
 * of other origins, so one of those is imported by a script of the page's own origin.
 */
export function startWorker(url: string | URL | undefined): Worker {
  if (url === undefined && isSameOrigin(import.meta.url)) {
    // Bundlers look for exactly this expression.
    return new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  }
  const script = new URL(url ?? new URL("./worker.js", import.meta.url), pageUrl());
  if (isSameOrigin(script.href)) return new Worker(script, { type: "module" });
  const source = `import ${JSON.stringify(script.href)};`;
  const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const worker = new Worker(address, { type: "module" });
  const forget = (): void => URL.revokeObjectURL(address);
  worker.addEventListener("message", forget, { once: true });
  worker.addEventListener("error", forget, { once: true });
  return worker;
}

/** The address that relative ones begin at: that of the page, or of the worker that this runs in. */
export function pageUrl(): string {
  return typeof document === "undefined" ? location.href : document.baseURI;
}

function isSameOrigin(url: string): boolean {
  return new URL(url).origin === location.origin;
}
