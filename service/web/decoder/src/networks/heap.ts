/**
 * Memory of the WebAssembly instance.
 *
 * Freed memory is used again, so it grows to what the largest picture's windows need and no
 * further. Views of it are made anew for every use, because growing detaches them.
 */

const PAGE = 65536;
const ALIGNMENT = 64;

interface Gap {
  address: number;
  bytes: number;
}

/** All memory behind what the module itself uses. */
export class Heap {
  private readonly gaps: Gap[] = []; // in order of address; no two touch
  private readonly taken = new Map<number, number>();
  private end: number;

  constructor(
    readonly memory: WebAssembly.Memory,
    base: number,
  ) {
    this.end = Math.ceil(base / ALIGNMENT) * ALIGNMENT;
  }

  /** Reserve memory, whose content is not set; returns its address, a multiple of 64. */
  allocate(bytes: number): number {
    const size = Math.max(1, Math.ceil(bytes / ALIGNMENT)) * ALIGNMENT;
    const gap = this.gaps.find((one) => one.bytes >= size);
    const address = gap === undefined ? this.extend(size) : take(this.gaps, gap, size);
    this.taken.set(address, size);
    return address;
  }

  /** Give back what `allocate` returned. */
  release(address: number): void {
    const bytes = this.taken.get(address) ?? 0;
    this.taken.delete(address);
    let at = this.gaps.findIndex((gap) => gap.address > address);
    if (at < 0) at = this.gaps.length;
    this.gaps.splice(at, 0, { address, bytes });
    this.join(at);
    this.join(at - 1);
    const last = this.gaps.at(-1);
    if (last !== undefined && last.address + last.bytes === this.end) {
      this.end = last.address;
      this.gaps.pop();
    }
  }

  /** Join a gap with the next one if they touch. */
  private join(at: number): void {
    const gap = this.gaps[at];
    const next = this.gaps[at + 1];
    if (gap !== undefined && next !== undefined && gap.address + gap.bytes === next.address) {
      gap.bytes += next.bytes;
      this.gaps.splice(at + 1, 1);
    }
  }

  /** Reserve memory behind all that is taken. */
  private extend(size: number): number {
    const missing = this.end + size - this.memory.buffer.byteLength;
    if (missing > 0) this.memory.grow(Math.ceil(missing / PAGE));
    this.end += size;
    return this.end - size;
  }
}

/** Cut memory off the beginning of a gap. */
function take(gaps: Gap[], gap: Gap, size: number): number {
  const { address } = gap;
  gap.address += size;
  gap.bytes -= size;
  if (gap.bytes === 0) gaps.splice(gaps.indexOf(gap), 1);
  return address;
}

/** Memory that is freed together. */
export class Arena {
  private readonly addresses: number[] = [];

  constructor(private readonly heap: Heap) {}

  /** Reserve bytes whose content is not set. */
  allocate(bytes: number): number {
    const address = this.heap.allocate(bytes);
    this.addresses.push(address);
    return address;
  }

  /** Reserve bytes that are 0. */
  zeros(bytes: number): number {
    const address = this.allocate(bytes);
    new Uint8Array(this.heap.memory.buffer, address, bytes).fill(0);
    return address;
  }

  /** Copy an array into memory; returns its address. */
  put(data: ArrayBufferView): number {
    const address = this.allocate(data.byteLength);
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    new Uint8Array(this.heap.memory.buffer, address, data.byteLength).set(bytes);
    return address;
  }

  /** Give everything back; a second call does nothing. */
  free(): void {
    for (const address of this.addresses.splice(0)) this.heap.release(address);
  }
}
