/** What the visitor has chosen, and its form in the URL: a link shows the same view again. */

export const SIDES = ["original", "rankpress", "jpeg", "webp", "avif"] as const;
/** A picture that can be shown on one side of the comparison. */
export type Side = (typeof SIDES)[number];

export const OTHERS = ["jpeg", "webp", "avif"] as const;
/** A format that Rankpress is compared with. */
export type Other = (typeof OTHERS)[number];

export const NAMES: Record<Side, string> = {
  original: "Original",
  rankpress: "Rankpress",
  jpeg: "JPEG",
  webp: "WebP",
  avif: "AVIF",
};

const AIMS = ["rate", "target_bpp", "max_bytes", "target_psnr", "lossless"] as const;
/** What decides the size of a stream; names are those of parameters of /compress. */
export type Aim = (typeof AIMS)[number];

const MODES = ["slider", "a", "b", "difference"] as const;
/** How two pictures are shown: with a slider between them, one of them, or their difference. */
export type Mode = (typeof MODES)[number];

const TUNES = ["psnr", "ms-ssim"] as const;
export type Tune = (typeof TUNES)[number];

const MATCHES = ["bytes", "psnr"] as const;
/** What other formats have in common with the stream. */
export type Match = (typeof MATCHES)[number];

export interface State {
  /** Name of an example picture; empty for a picture of the visitor's. */
  example: string;
  aim: Aim;
  /** 1 to 8 in sixteenths. */
  rate: number;
  /** Bits per pixel, bytes and dB of the other aims. */
  target_bpp: number;
  max_bytes: number;
  target_psnr: number;
  tune: Tune;
  match: Match;
  a: Side;
  b: Side;
  mode: Mode;
  /** Share of the width where the slider is. */
  split: number;
  /** Device pixels per pixel of the picture, 1 to 8; 0 fits the picture into its place. */
  zoom: number;
  /** The pixel in the middle, where the picture is zoomed. */
  x: number;
  y: number;
  /** Factor of the difference. */
  gain: number;
  heat: boolean;
  /** Whether streams are decoded in this browser. */
  local: boolean;
  effort: number;
  /** Id of the job whose stream is shown; empty for none. */
  job: string;
}

export const DEFAULTS: Readonly<State> = {
  example: "",
  aim: "rate",
  rate: 4,
  target_bpp: 0.5,
  max_bytes: 20_000,
  target_psnr: 36,
  tune: "psnr",
  match: "bytes",
  a: "original",
  b: "rankpress",
  mode: "slider",
  split: 0.5,
  zoom: 0,
  x: 0,
  y: 0,
  gain: 8,
  heat: false,
  local: false,
  effort: 1,
  job: "",
};

/** Read a state from the part of a URL after #. What is missing or wrong has its default. */
export function parseState(hash: string): State {
  const values = new URLSearchParams(hash.replace(/^#/, ""));
  const number = (name: keyof State, least: number, most: number): number => {
    const value = Number(values.get(name) ?? DEFAULTS[name]);
    return value >= least && value <= most ? value : Number(DEFAULTS[name]);
  };
  const one = <T extends string>(name: keyof State, options: readonly T[]): T =>
    options.find((option) => option === values.get(name)) ?? (DEFAULTS[name] as T);
  const word = (name: keyof State): string => values.get(name)?.match(/^[\w-]{1,64}$/)?.[0] ?? "";
  return {
    example: word("example"),
    aim: one("aim", AIMS),
    rate: roundRate(number("rate", 1, 8)),
    target_bpp: number("target_bpp", 0.001, 100),
    max_bytes: Math.round(number("max_bytes", 1, 1e12)),
    target_psnr: number("target_psnr", 1, 200),
    tune: one("tune", TUNES),
    match: one("match", MATCHES),
    a: one("a", SIDES),
    b: one("b", SIDES),
    mode: one("mode", MODES),
    split: number("split", 0, 1),
    zoom: Math.round(number("zoom", 0, 8)),
    x: number("x", 0, 1e6),
    y: number("y", 0, 1e6),
    gain: number("gain", 1, 64),
    heat: values.get("heat") === "true",
    local: values.get("local") === "true",
    effort: Math.round(number("effort", 0, 4)),
    job: word("job"),
  };
}

/** The part of a URL after # for a state; what has its default is left out. */
export function formatState(state: State): string {
  const values = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (value !== DEFAULTS[name as keyof State]) values.set(name, String(value));
  }
  return values.toString();
}

/** The nearest rate that exists, in sixteenths. */
export function roundRate(rate: number): number {
  return Math.min(8, Math.max(1, Math.round(rate * 16) / 16));
}

/** The parameters of /compress for a state. */
export function compressQuery(state: State): URLSearchParams {
  const query = new URLSearchParams();
  if (state.aim === "lossless") query.set("rate", "lossless");
  else query.set(state.aim, String(state[state.aim]));
  if (state.tune !== DEFAULTS.tune && state.aim !== "lossless") query.set("tune", state.tune);
  return query;
}
