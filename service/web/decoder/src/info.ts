/** What a stream is, read from its bytes without decoding its pixels. */

import { bytesOf, hex } from "./stream/bytes.js";
import {
  latentPieces,
  layerOf,
  metadata,
  RATE_UNIT,
  readSections,
  sectionName,
  type Sections,
} from "./stream/stream.js";
import { latentBox, SEGMENTS, tiles } from "./stream/tiles.js";
import type { StreamInfo } from "./types.js";

/**
 * Describes a stream without decoding it. It needs no weights.
 *
 * With `partial`, a stream that is cut is described too. Raises BadStream and UnsupportedStream.
 */
export function info(
  source: ArrayBuffer | ArrayBufferView,
  options: { partial?: boolean } = {},
): StreamInfo {
  const bytes = bytesOf(source);
  const sections = readSections(bytes, options);
  const { header, spans, body } = sections;
  const layer = layerOf(sections);
  const ready = spans.get(8);
  return {
    version: 1,
    width: header.width,
    height: header.height,
    rate: header.rate16 === 0 ? "lossless" : header.rate16 / RATE_UNIT,
    tune: header.tune,
    grey: header.grey,
    alpha: spans.has(4) || (layer?.hasAlpha ?? false),
    model: header.model,
    ready: ready === undefined ? null : hex(body.subarray(ready.start, ready.end)),
    adapted: spans.has(6),
    sameMachine: header.sameMachine,
    graphicsShare: layer?.share ?? 0,
    bytes: bytes.length,
    tiles: tiles(latentBox(header.width, header.height)).length,
    sections: Array.from(spans, ([kind, { start, end }]) => ({
      name: sectionName(kind),
      bytes: end - start,
    })),
    icc: metadata(sections, "icc"),
    exif: metadata(sections, "exif"),
    marks: marks(sections),
  };
}

function marks(sections: Sections): StreamInfo["marks"] {
  if (!sections.spans.has(2) || sections.header.sameMachine) return [];
  const { order, present } = latentPieces(sections);
  const last = new Map(order.map(({ segment }, at) => [segment, at]));
  if (last.size === 1) return []; // one piece a tile
  return Array.from(last)
    .filter(([, at]) => at < present.length)
    .map(([segment, at]) => ({ segment: SEGMENTS[segment]!, bytes: present[at]!.end }));
}
