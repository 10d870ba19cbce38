/** The WebAssembly part of the decoder. TypeScript (src/heap.ts) manages its memory. */

export { tablesBytes, buildTables, start, pull, ended } from "./ans";
export { block, dequantise, interleave, linear, reconstruct } from "./integers";
export { blockFloat, linearFloat, roundWeights, samples, toReal } from "./floats";
export {
  addProduct,
  addRounded,
  addScaled,
  largestSum,
  packIntegers,
  units,
  widen,
} from "./merge";

/** Where free memory begins. */
export function heapBase(): usize {
  return __heap_base;
}
