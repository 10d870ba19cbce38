/** WebAssembly modules by address. */

import { abortable } from "../abort.js";
import { RankpressError } from "../errors.js";
import type { Resource } from "./messages.js";

/** Fetches and compiles a module. Raises RankpressError. */
export async function compileModule(url: string | URL): Promise<WebAssembly.Module> {
  try {
    const response = await fetch(url);
    if (!response.ok) throw new RankpressError(`status ${response.status}`);
    return await WebAssembly.compile(await response.arrayBuffer());
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new RankpressError(`${url} cannot be loaded: ${reason}`);
  }
}

/** Fetches libwebp's decoder when it is first asked for, and again after that failed. */
export function lazyWebp(url: string | URL): (signal: AbortSignal) => Promise<Resource> {
  let loading: Promise<Resource> | null = null;
  const load = async (): Promise<Resource> => {
    try {
      return { kind: "webp", key: "webp", module: await compileModule(url) };
    } catch (error) {
      loading = null;
      throw error;
    }
  };
  return (signal) => abortable((loading ??= load()), signal);
}
