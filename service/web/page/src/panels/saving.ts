/** Downloads: the stream, and the picture that it decodes to. */

import { saveAs } from "../dom.js";
import type { Trial } from "../view/trial.js";
import { streamName } from "./commands.js";

/** Save the stream of a trial. */
export function saveStream(trial: Trial): void {
  if (trial.stream !== null) saveAs(trial.stream.stream, streamName(trial.file.name));
}

/** Save the decoded picture of a trial as PNG. */
export async function savePicture(trial: Trial): Promise<void> {
  if (trial.decoded === null) return;
  const { picture } = trial.decoded;
  const file = picture instanceof Blob ? picture : await pngOf(picture);
  saveAs(file, streamName(trial.file.name).replace(/\.rkp$/, ".png"));
}

function pngOf(picture: ImageData): Promise<Blob> {
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  canvas.getContext("2d")?.putImageData(picture, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}
