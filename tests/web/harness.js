/**
 * What the tests run in a page. It imports the package from /decoder, and reads the latents that the
 * package's workers send, so that the tests see them as they are in a page.
 */

const TYPES = ["RankpressError", "BadStream", "UnsupportedStream", "UnknownModel", "UnknownUpdate"];
TYPES.push("TooManyPixels", "BadParameter", "StoreError");

/** Latents [height, width, M] of tiles, in the order in which the tiles were given to workers. */
let tiles = [];

class WatchedWorker extends Worker {
  #tile = null;

  constructor(...words) {
    super(...words);
    this.addEventListener("message", ({ data }) => {
      if (this.#tile && data.result) this.#tile.yHat = data.result.yHat.slice();
    });
  }

  postMessage(message, ...rest) {
    if (message.kind === "task") {
      const { height, width } = message.input;
      this.#tile = message.name === "tile" ? { height, width, yHat: null } : null;
      if (this.#tile) tiles.push(this.#tile);
    }
    super.postMessage(message, ...rest);
  }
}

globalThis.Worker = WatchedWorker;
const { createDecoder, info, ...errors } = await import("/decoder/rankpress-decoder.js");
let decoder = null;

async function fetched(url) {
  return new Uint8Array(await (await fetch(url)).arrayBuffer());
}

/** The latents of a picture, [H, W, M], of those of its tiles of 64 x 64, row by row. */
function joined(width, height) {
  const [across, down] = [Math.ceil(width / 16), Math.ceil(height / 16)];
  const channels = tiles[0].yHat.length / (tiles[0].height * tiles[0].width);
  const out = new Int16Array(across * down * channels);
  let at = 0;
  for (let top = 0; top < down; top += 64) {
    for (let left = 0; left < across; left += 64, at++) {
      const tile = tiles[at];
      const row = tile.width * channels;
      for (let y = 0; y < tile.height; y++) {
        const from = tile.yHat.subarray(y * row, (y + 1) * row);
        out.set(from, ((top + y) * across + left) * channels);
      }
    }
  }
  return out;
}

async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** How far RGBA samples are from others; colours under alpha 0 mean nothing. */
function distance(samples, expected) {
  let [worst, off, alphaOff] = [0, 0, 0];
  for (let at = 0; at < samples.length; at += 4) {
    if (samples[at + 3] !== expected[at + 3]) alphaOff++;
    if (expected[at + 3] === 0) continue;
    for (let c = at; c < at + 3; c++) {
      const difference = Math.abs(samples[c] - expected[c]);
      if (difference > 0) off++;
      if (difference > worst) worst = difference;
    }
  }
  return { worst, off, alphaOff };
}

/** The kind of an error, "FAULT" with what it is where it is none of the package's. */
function kindOf(error) {
  const isOurs = error instanceof errors.RankpressError && TYPES.includes(error.name);
  return isOurs ? error.name : `FAULT ${error?.name}: ${error?.message}`;
}

/** What comes of describing a stream. */
function kindOfDescription(bytes, { partial } = {}) {
  try {
    info(bytes, { partial });
    return "success";
  } catch (error) {
    return kindOf(error);
  }
}

/** What comes of a decode. */
function outcomeOf(promise, timeoutMs) {
  const late = new Promise((resolve) => setTimeout(resolve, timeoutMs, "FAULT: no answer"));
  return Promise.race([promise.then(() => "success", kindOf), late]);
}

globalThis.harness = {
  info,
  errors,

  get decoder() {
    return decoder;
  },

  async open(options) {
    decoder?.close();
    decoder = await createDecoder({ weightsUrl: "/weights/index.json", ...options });
  },

  /** The kind of error that a promise is rejected with, or "success". */
  kindOf(promise) {
    return promise.then(() => "success", kindOf);
  },

  /** Decodes /cases/NAME.rkp and compares it with the samples in /cases/NAME.rgba. */
  async compare(name, options) {
    const [bytes, expected] = await Promise.all([
      fetched(`/cases/${name}.rkp`),
      fetched(`/cases/${name}.rgba`),
    ]);
    tiles = [];
    const begun = performance.now();
    const image = await decoder.decode(bytes, { raw: true, ...options });
    const ms = performance.now() - begun;
    if (image.data.length !== expected.length) {
      return { size: [image.width, image.height], samples: expected.length };
    }
    const whole = !options?.region && !options?.maxSize && tiles.length > 0;
    const { width, height } = info(bytes, { partial: true });
    const yHat = whole ? await sha256(joined(width, height)) : null;
    return { size: [image.width, image.height], ...distance(image.data, expected), yHat, ms };
  },

  /** Milliseconds of each of some decodes of one stream. */
  async times(url, count) {
    const bytes = await fetched(url);
    const times = [];
    for (let i = 0; i < count; i++) {
      const begun = performance.now();
      await decoder.decode(bytes);
      times.push(performance.now() - begun);
    }
    return times;
  },

  /**
   * Tries many streams, which lie in one file: each after its length in 4 bytes.
   *
   * Returns how often each outcome came, faults, and the longest time in ms.
   */
  async attempts(url, options, timeoutMs) {
    const file = await fetched(url);
    const view = new DataView(file.buffer);
    const counts = {};
    const faults = [];
    let slowest = 0;
    for (let at = 0; at < file.length; ) {
      const length = view.getUint32(at, true);
      const bytes = file.slice(at + 4, at + 4 + length);
      at += 4 + length;
      const begun = performance.now();
      const outcome = await outcomeOf(decoder.decode(bytes, options), timeoutMs);
      slowest = Math.max(slowest, performance.now() - begun);
      const described = kindOfDescription(bytes, options);
      if (described.startsWith("FAULT")) faults.push(`info: ${described}`);
      const kind = outcome.startsWith("FAULT") ? "FAULT" : outcome;
      counts[kind] = (counts[kind] ?? 0) + 1;
      if (kind === "FAULT") faults.push(`${outcome} for ${bytes.slice(0, 60).toHex?.() ?? length}`);
    }
    return { counts, faults, slowest };
  },
};
