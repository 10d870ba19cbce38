import { createDecoder } from "rankpress-decoder";
import "rankpress-decoder/element";

// Where the tests serve weights and streams.
const files = new URLSearchParams(location.search).get("files");
const weightsUrl = `${files}/weights/index.json`;

const decoder = await createDecoder({ weightsUrl });
const response = await fetch(`${files}/photo.rkp`);
const picture = await decoder.decode(await response.arrayBuffer());
const canvas = document.querySelector("canvas");
canvas.width = picture.width;
canvas.height = picture.height;
canvas.getContext("2d").putImageData(picture, 0, 0);

const element = document.querySelector("rankpress-img");
element.addEventListener("load", () => (document.title = "done"));
element.addEventListener("error", ({ error }) => (document.title = `failed: ${error}`));
element.setAttribute("weights", weightsUrl);
element.setAttribute("src", `${files}/drawing.rkp`);
