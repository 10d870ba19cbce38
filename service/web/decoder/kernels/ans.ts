/**
 * The ANS decoder: pieces of bytes -> groups of symbols.
 *
 * A decoder is 16 bytes: its state (u64), the address of its words, and how many are left. Tables
 * hold for each level where the interval of each of the 1023 symbols begins (u32, and 2^24 behind
 * the last), and the symbol at the beginning of each of 1024 equal parts of the 24 bits (u16, and
 * the last symbol behind), where the search for a symbol begins.
 */

const SYMBOLS: usize = 1023;
const PARTS: usize = 1024;

/** Bytes of the edges and of the parts of one level. */
const EDGES_BYTES: usize = (SYMBOLS + 1) * 4;
const PARTS_BYTES: usize = (PARTS + 1) * 2;

/** Bytes of the tables of 64 levels. */
export function tablesBytes(): usize {
  return 64 * (EDGES_BYTES + PARTS_BYTES);
}

/**
 * Build the tables from [64, 512] int32: the mass of symbols 0, ±1, ±2, …
 *
 * Returns 0 where a mass is below 1 or a level's do not sum to 2^24.
 */
export function buildTables(mass: usize, tables: usize): i32 {
  for (let level: usize = 0; level < 64; level++) {
    const half = mass + level * 2048;
    const edges = tables + level * EDGES_BYTES;
    let total: i64 = 0;
    for (let s: i32 = 0; s < <i32>SYMBOLS; s++) {
      const p = load<i32>(half + <usize>abs(s - 511) * 4);
      if (p < 1) return 0;
      store<u32>(edges + <usize>s * 4, <u32>total);
      total += p;
      if (total > 1 << 24) return 0;
    }
    if (total != 1 << 24) return 0;
    store<u32>(edges + SYMBOLS * 4, <u32>total);
    const parts = tables + 64 * EDGES_BYTES + level * PARTS_BYTES;
    let s: usize = 0;
    for (let i: usize = 0; i < PARTS; i++) {
      while (load<u32>(edges + s * 4, 4) <= <u32>i << 14) s++;
      store<u16>(parts + i * 2, <u16>s);
    }
    store<u16>(parts + PARTS * 2, <u16>(SYMBOLS - 1));
  }
  return 1;
}

/** Begin to decode `words` words of 32 bits. */
export function start(decoder: usize, data: usize, words: u32): void {
  let state: u64 = 0;
  while (state < 1 << 32 && words > 0) {
    words--;
    state = (state << 32) | <u64>load<u32>(data + <usize>words * 4);
  }
  store<u64>(decoder, state);
  store<u32>(decoder, data, 8);
  store<u32>(decoder, words, 12);
}

/** Whether every word was read and the state is 0. */
export function ended(decoder: usize): i32 {
  return i32(load<u64>(decoder) == 0 && load<u32>(decoder, 12) == 0);
}

/**
 * Decode a group: levels [count, stride] int16, of which channels from…to count -> int16 symbols.
 *
 * Symbols of level 0 are left as they are. `order` has room for a u32 for each symbol.
 */
export function pull(
  decoder: usize,
  tables: usize,
  levels: usize,
  count: u32,
  stride: u32,
  from: u32,
  to: u32,
  symbols: usize,
  order: usize,
): void {
  const starts = memory.data(65 * 4, 16);
  memory.fill(starts, 0, 65 * 4);
  for (let i: u32 = 0; i < count; i++) {
    for (let c = from; c < to; c++) {
      const at = starts + (<usize>load<u16>(levels + <usize>(i * stride + c) * 2) & 63) * 4;
      store<u32>(at, load<u32>(at, 4) + 1, 4);
    }
  }
  store<u32>(starts, 0, 4);
  for (let level: usize = 1; level < 64; level++) {
    const at = starts + level * 4;
    store<u32>(at, load<u32>(at) + load<u32>(at, 4), 4);
  }
  for (let i: u32 = 0; i < count; i++) {
    for (let c = from; c < to; c++) {
      const place = i * stride + c;
      const level = <usize>load<u16>(levels + <usize>place * 2) & 63;
      if (level == 0) continue;
      const at = starts + level * 4;
      const next = load<u32>(at);
      store<u32>(at, next + 1);
      store<u32>(order + <usize>next * 4, place);
    }
  }
  let low: u32 = 0;
  for (let level: usize = 1; level < 64; level++) {
    const high = load<u32>(starts + level * 4);
    if (high > low) {
      run(
        decoder,
        tables + level * EDGES_BYTES,
        tables + 64 * EDGES_BYTES + level * PARTS_BYTES,
        order + <usize>low * 4,
        order + <usize>high * 4,
        symbols,
      );
    }
    low = high;
  }
}

/** Decode the symbols of one level, whose places are the u32 from `order` to `end`. */
function run(
  decoder: usize,
  edges: usize,
  parts: usize,
  order: usize,
  end: usize,
  symbols: usize,
): void {
  let state = load<u64>(decoder);
  let words = load<u32>(decoder, 12);
  const data: usize = load<u32>(decoder, 8);
  for (; order < end; order += 4) {
    const q = <u32>state & 0xffffff;
    const part = parts + <usize>(q >> 14) * 2;
    let low: usize = load<u16>(part);
    let high: usize = load<u16>(part, 2);
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (load<u32>(edges + middle * 4) <= q) low = middle;
      else high = middle - 1;
    }
    const begin = load<u32>(edges + low * 4);
    const mass = load<u32>(edges + low * 4, 4) - begin;
    state = (state >> 24) * <u64>mass + <u64>(q - begin);
    if (state < 1 << 32 && words > 0) {
      words--;
      state = (state << 32) | <u64>load<u32>(data + <usize>words * 4);
    }
    store<i16>(symbols + <usize>load<u32>(order) * 2, <i16>(<i32>low - 511));
  }
  store<u64>(decoder, state);
  store<u32>(decoder, words, 12);
}
