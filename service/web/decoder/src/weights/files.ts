/**
 * Files of weights, fetched once and kept in memory: those who ask for one at the same time share
 * the request, which is aborted when none of them waits any more.
 */

import { sha256 } from "@noble/hashes/sha2.js";
import { abortable } from "../abort.js";
import { StoreError } from "../errors.js";
import { hex } from "../stream/bytes.js";

/** A file as the index of weights names it. */
export interface FileEntry {
  /** Its address, relative to that of the index. */
  file: string;
  sha256: string;
  bytes: number;
}

interface Download {
  data: Promise<Uint8Array>;
  controller: AbortController;
  waiting: number;
  isDone: boolean;
}

export class FileCache {
  private readonly downloads = new Map<string, Download>();

  /** @param base address that those of the files are relative to. */
  constructor(private readonly base: URL) {}

  /**
   * The bytes of a file. Raises StoreError where it cannot be fetched or is another than the index
   * says; it is fetched anew then when it is next asked for.
   */
  async get(entry: FileEntry, signal: AbortSignal): Promise<Uint8Array> {
    const download = this.downloads.get(entry.sha256) ?? this.begin(entry);
    download.waiting++;
    try {
      return await abortable(download.data, signal);
    } finally {
      if (--download.waiting === 0 && !download.isDone) {
        download.controller.abort();
        this.forget(entry, download);
      }
    }
  }

  private begin(entry: FileEntry): Download {
    const controller = new AbortController();
    const data = fetchFile(new URL(entry.file, this.base), entry, controller.signal);
    const download: Download = { data, controller, waiting: 0, isDone: false };
    this.downloads.set(entry.sha256, download);
    data.then(
      () => (download.isDone = true),
      () => this.forget(entry, download),
    );
    return download;
  }

  private forget(entry: FileEntry, download: Download): void {
    if (this.downloads.get(entry.sha256) === download) this.downloads.delete(entry.sha256);
  }
}

async function fetchFile(url: URL, entry: FileEntry, signal: AbortSignal): Promise<Uint8Array> {
  const data = await fetchBytes(url, { signal });
  const digest = hex(sha256(data));
  if (data.length !== entry.bytes || digest !== entry.sha256) {
    throw new StoreError(
      `${url} has ${data.length} bytes, sha256 ${digest}; ` +
        `the index says ${entry.bytes} bytes, ${entry.sha256}`,
    );
  }
  return data;
}

/** The bytes of a successful answer. Raises StoreError, or the reason of an abort. */
export async function fetchBytes(
  url: URL,
  options: RequestInit & { signal: AbortSignal },
): Promise<Uint8Array<ArrayBuffer>> {
  try {
    const response = await fetch(url, options);
    if (!response.ok) throw new StoreError(`${url} was answered with status ${response.status}`);
    return new Uint8Array(await response.arrayBuffer());
  } catch (error) {
    options.signal.throwIfAborted();
    if (error instanceof StoreError) throw error;
    throw new StoreError(`${url} cannot be fetched: ${String(error)}`);
  }
}
