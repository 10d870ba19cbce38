/**
 * The `.rkp` container: a header, sections, and a checksum of everything before it.
 *
 *     magic "RKP" | version 1 | model 4 bytes | rate16 | flags | width | height |
 *     sections | CRC-32C
 *
 * The first broken rule decides the error, in the order of the format's specification: magic,
 * version, other fields of the header, checksum, sections, graphics layer, metadata, tiles. This
 * module does not decode payloads.
 */

import { BadStream, UnsupportedStream } from "../errors.js";
import type { Tune } from "../types.js";
import { ByteReader, crc32c, hex, pieceSpans, type Span } from "./bytes.js";
import { readLayer, type GraphicsLayer } from "./graphics.js";
import { inflate } from "./inflate.js";
import { latentBox, pieceCount, SEGMENTS, TILE, tiles, type Box } from "./tiles.js";

const MAGIC = "524b50";
const VERSION = 1;
/** Largest width or height in pixels. */
export const MAX_SIDE = 2 ** 18 - 1;
/** Largest ICC profile or Exif block, inflated, and coded. */
const MAX_METADATA_BYTES = 2 ** 22;
const MAX_PACKED_BYTES = MAX_METADATA_BYTES + 2 ** 16;
const MAX_SECTIONS = 16;
/** Rates are stored in sixteenths. */
export const RATE_UNIT = 16;
const READY_BYTES = 4;
const GREY = 1;
const MS_SSIM = 2;
const SAME_MACHINE = 4;

/** Section types, in the order in which they stand. */
const SECTIONS = new Map([
  ["icc", 1],
  ["update", 6],
  ["ready", 8],
  ["alpha", 4],
  ["graphics", 10],
  ["latents", 2],
  ["exif", 3],
]);
const ORDER = [...SECTIONS.values()];
const LATENTS = 2;
const GRAPHICS = 10;
const WITHOUT_COMPLETE_LAYER = ["latents", "update", "ready", "alpha"];

/** The header of a stream. */
export interface Header {
  /** First 4 bytes of the identity of the weights, in hexadecimal digits. */
  model: string;
  /** Rate in sixteenths; 0 in a lossless stream. */
  rate16: number;
  tune: Tune;
  grey: boolean;
  /** Only the machine that made the stream can decode it. */
  sameMachine: boolean;
  width: number;
  height: number;
}

/** The parts of a stream; payloads are coded, metadata are inflated. */
export interface Stream {
  header: Header;
  /** Coded pieces of each tile; in a stream that is cut, pieces are missing at the end. */
  tiles: Uint8Array[][];
  /** Share of the coded latents' bytes that is there, 0 to 1. */
  complete: number;
  graphics: GraphicsLayer | null;
  alpha: Uint8Array | null;
  icc: Uint8Array<ArrayBuffer> | null;
  exif: Uint8Array<ArrayBuffer> | null;
  update: Uint8Array | null;
  /** First 4 bytes of the hash of a ready update, in hexadecimal digits. */
  ready: string | null;
}

/** How to read a stream. */
export interface ReadOptions {
  /** Read a stream that is cut, too. It has no checksum, so damage may go unseen. */
  partial?: boolean | undefined;
  /** Called with the header before anything else is read; it may raise. */
  checkHeader?: ((header: Header) => void) | undefined;
}

/** A header, and where the payload of each section lies in the bytes, by type. */
export interface Sections {
  header: Header;
  spans: Map<number, Span>;
  /** All bytes before the checksum; in a stream that is cut, those that are there. */
  body: Uint8Array;
}

/** Parses and checks a stream. Raises BadStream and UnsupportedStream. */
export function readStream(data: Uint8Array, options: ReadOptions = {}): Stream {
  const sections = readSections(data, options);
  const { header } = sections;
  const graphics = layerOf(sections);
  const icc = metadata(sections, "icc");
  const exif = metadata(sections, "exif");
  const ready = payload(sections, "ready");
  return {
    header,
    ...codedTiles(sections),
    graphics,
    alpha: payload(sections, "alpha"),
    icc,
    exif,
    update: payload(sections, "update"),
    ready: ready && hex(ready),
  };
}

/** The sections of a stream whose checksum holds, or of one that is cut, if it may be. */
export function readSections(data: Uint8Array, options: ReadOptions): Sections {
  const reader = new ByteReader(data);
  const header = readHeader(reader);
  options.checkHeader?.(header);
  const fault = checksumFault(data, reader.at);
  if (fault !== null && !options.partial) throw new BadStream(fault);
  const isCut = fault !== null;
  if (!isCut) reader.data = data.subarray(0, -4);
  const spans = new Map<number, Span>();
  while (reader.at < reader.data.length) {
    const kind = reader.varint("section type");
    if (spans.size === MAX_SECTIONS) {
      throw new BadStream(`more than ${MAX_SECTIONS} sections, the next at offset ${reader.at}`);
    }
    const length = reader.varint("section length");
    const start = reader.at;
    const isLast = isCut && kind === LATENTS; // what follows it may be cut
    const bytes = isLast ? null : reader.take(length, "section");
    checkOrder(kind, spans, start);
    spans.set(kind, { start, end: start + length });
    // The picture is complete then, or as complete as it gets.
    if (isLast || (isCut && kind === GRAPHICS && bytes?.[0] !== 0)) break;
  }
  const ready = spans.get(SECTIONS.get("ready")!);
  if (ready !== undefined && ready.end - ready.start !== READY_BYTES) {
    const size = ready.end - ready.start;
    throw new BadStream(`a ready update is named by ${size} bytes, expected ${READY_BYTES}`);
  }
  return { header, spans, body: reader.data };
}

/** The name of a section type. */
export function sectionName(kind: number): string {
  for (const [name, known] of SECTIONS) if (known === kind) return name;
  return `type-${kind}`;
}

function readHeader(reader: ByteReader): Header {
  if (hex(reader.take(3, "magic")) !== MAGIC) {
    throw new BadStream("the first three bytes are not 'RKP': this is not a Rankpress stream");
  }
  const version = reader.byte("version");
  if (version !== VERSION) {
    throw new UnsupportedStream(`format version ${version}, this decoder reads ${VERSION}`);
  }
  const model = hex(reader.take(4, "model"));
  const rate16 = within(reader.byte("rate16"), "rate16", 0, 8 * RATE_UNIT);
  const flags = reader.byte("flags");
  if (flags > 7) throw new UnsupportedStream(`flags is ${flags}, expected 0 to 7`);
  const width = within(reader.varint("width"), "width", 1, MAX_SIDE);
  const height = within(reader.varint("height"), "height", 1, MAX_SIDE);
  return {
    model,
    rate16,
    tune: flags & MS_SSIM ? "ms-ssim" : "psnr",
    grey: (flags & GREY) !== 0,
    sameMachine: (flags & SAME_MACHINE) !== 0,
    width,
    height,
  };
}

function within(value: number, name: string, low: number, high: number): number {
  if (value >= low && value <= high) return value;
  throw new BadStream(`${name} is ${value}, expected ${low} to ${high}`);
}

/** What is wrong with the end of a stream, null where its checksum holds. */
function checksumFault(data: Uint8Array, headerEnd: number): string | null {
  const end = data.length - 4;
  if (end < headerEnd) return `the stream ends at ${data.length} bytes, before its checksum`;
  const expected = new DataView(data.buffer, data.byteOffset + end).getUint32(0, true);
  const actual = crc32c(data.subarray(0, end));
  if (actual === expected) return null;
  const [found, stored] = [actual, expected].map((sum) => sum.toString(16).padStart(8, "0"));
  return `checksum is ${found}, the stream says ${stored}: damaged or cut`;
}

/** Raises BadStream unless a section of that type may follow those before it. */
function checkOrder(kind: number, spans: Map<number, Span>, at: number): void {
  if (spans.has(kind)) {
    throw new BadStream(`section ${sectionName(kind)} occurs twice, again at offset ${at}`);
  }
  const place = ORDER.indexOf(kind);
  if (place < 0 && kind % 2 === 0) {
    throw new UnsupportedStream(`critical section ${kind} needs a newer decoder`);
  }
  const before = [...spans.keys()].filter((one) => ORDER.includes(one)).at(-1);
  if (place >= 0 && before !== undefined && ORDER.indexOf(before) > place) {
    throw new BadStream(
      `section ${sectionName(kind)} at offset ${at} follows section ${sectionName(before)}`,
    );
  }
}

/** The payload of a section, null where there is none; it ends where the bytes end. */
function payload(sections: Sections, name: string): Uint8Array | null {
  const span = sections.spans.get(SECTIONS.get(name)!);
  return span === undefined ? null : sections.body.subarray(span.start, span.end);
}

/** An inflated profile or Exif block, null where there is none. */
export function metadata(sections: Sections, name: "icc" | "exif"): Uint8Array<ArrayBuffer> | null {
  const packed = payload(sections, name);
  return packed && inflate(packed, name, MAX_PACKED_BYTES, MAX_METADATA_BYTES);
}

/** The graphics layer, once it agrees with the header and with the other sections. */
export function layerOf(sections: Sections): GraphicsLayer | null {
  const { header, spans } = sections;
  const coded = payload(sections, "graphics");
  const layer = coded && readLayer(coded, header.width, header.height);
  if (layer?.isComplete) {
    const surplus = WITHOUT_COMPLETE_LAYER.find((name) => spans.has(SECTIONS.get(name)!));
    if (surplus !== undefined) {
      throw new BadStream(`section ${surplus} in a stream whose graphics layer is complete`);
    }
    if (header.rate16 !== 0 || header.model !== "00000000") {
      throw new BadStream("a stream whose graphics layer holds every pixel has a rate or a model");
    }
    return layer;
  }
  if (!spans.has(LATENTS)) throw new BadStream("the stream has no latents section");
  if (header.rate16 < RATE_UNIT) {
    throw new BadStream(`rate16 is ${header.rate16}, expected ${RATE_UNIT} to ${8 * RATE_UNIT}`);
  }
  return layer;
}

/** The pieces of each tile that are there as a whole, and the share of their bytes. */
function codedTiles(sections: Sections): Pick<Stream, "tiles" | "complete"> {
  const { header, spans, body } = sections;
  const section = spans.get(LATENTS);
  if (section === undefined || header.sameMachine) return { tiles: [], complete: 1 };
  const coded: Uint8Array[][] = tiles(latentBox(header.width, header.height)).map(() => []);
  const { order, present } = latentPieces(sections);
  let bytes = 0;
  present.forEach(({ start, end }, i) => {
    coded[order[i]!.tile]!.push(body.subarray(start, end));
    bytes += end - start;
  });
  const isWhole = present.length === order.length;
  return { tiles: coded, complete: isWhole ? 1 : bytes / (section.end - section.start) };
}

/** The segment and tile of each piece of the latents. */
interface PiecePlace {
  segment: number;
  tile: number;
}

/**
 * The order of all pieces, and where those lie that are there.
 *
 * Raises BadStream where the lengths are cut, or exceed the section.
 */
export function latentPieces(sections: Sections): { order: PiecePlace[]; present: Span[] } {
  const { header, spans, body } = sections;
  const { start, end } = spans.get(LATENTS)!;
  const box = latentBox(header.width, header.height);
  const least = Math.ceil(box.bottom / TILE) * Math.ceil(box.right / TILE);
  const size = Math.min(end, body.length) - start;
  if (size < least - 1) {
    throw new BadStream(`latents section has ${size} bytes, ${least} tiles need more`);
  }
  const order = pieceOrder(tiles(box));
  const all = pieceSpans(new ByteReader(body, start), order.length, "latents", end);
  return { order, present: all.filter((piece) => piece.end <= body.length) };
}

function pieceOrder(all: Box[]): PiecePlace[] {
  return SEGMENTS.flatMap((_, segment) =>
    all.flatMap((box, tile) => (segment < pieceCount(box) ? [{ segment, tile }] : [])),
  );
}
