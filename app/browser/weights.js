// The weights of a network, as the page holds them: a safetensors file, whose ternary weights are packed.
//
// A safetensors file is eight bytes with the length n of its header, n bytes of JSON, and then the tensors. For each
// tensor the header has its type, its shape, and where its bytes begin and end.
//
// A ternary weight is a scale times -1, 0 or 1, a "trit". Five trits fit into one byte, because 3 to the 5th is 243 and
// a byte has 256 values: the byte is a number of five digits in base 3, the first trit in its lowest digit, and a digit
// is the trit plus one. That is 1.6 bits for each weight, where a 32-bit number takes 20 times as many.
"use strict";

const TRITS_PER_BYTE = 5, N_CODES = 3 ** TRITS_PER_BYTE;

/** The bytes that a text in base 64 stands for. */
function decodeBase64(text) {
  const characters = atob(text), bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

/** The tensors of a safetensors file by name, each with its `shape` and its `values`. */
function readSafetensors(bytes) {
  const headerLength = Number(new DataView(bytes.buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + headerLength)));
  const ARRAYS = { F32: Float32Array, U8: Uint8Array };
  const tensors = new Map();
  for (const [name, entry] of Object.entries(header)) {
    // Counts and the like have other types; nothing here reads them.
    if (!(entry.dtype in ARRAYS)) continue;
    const [begin, end] = entry.data_offsets.map((offset) => 8 + headerLength + offset);
    // A typed array of 32-bit numbers has to begin at a multiple of four; a copy always does.
    const values = new ARRAYS[entry.dtype](bytes.slice(begin, end).buffer);
    tensors.set(name, { shape: entry.shape, values });
  }
  return tensors;
}

/** The five trits of each of the 243 codes, one after the other. */
const TRITS_OF_CODE = new Int8Array(N_CODES * TRITS_PER_BYTE);
for (let code = 0; code < N_CODES; code++) {
  for (let place = 0, rest = code; place < TRITS_PER_BYTE; place++) {
    TRITS_OF_CODE[code * TRITS_PER_BYTE + place] = (rest % 3) - 1;
    rest = Math.floor(rest / 3);
  }
}

/**
 * Packed trits times their scales, as 32-bit numbers: equal to those that the network was trained with.
 *
 * @param {Uint8Array} packed five trits to a byte; what is left of the last byte stands for nothing
 * @param {Float32Array} scales one for each group of consecutive weights, all groups of one size
 * @param {number} n how many weights
 */
function unpackTernary(packed, scales, n) {
  const weights = new Float32Array(n), groupSize = n / scales.length;
  for (let i = 0; i < n; i++) {
    const code = packed[Math.floor(i / TRITS_PER_BYTE)];
    weights[i] = TRITS_OF_CODE[code * TRITS_PER_BYTE + (i % TRITS_PER_BYTE)] * scales[Math.floor(i / groupSize)];
  }
  return weights;
}

/**
 * Each row times the orthonormal Walsh-Hadamard matrix, in place: sums and differences of pairs at distance 1, 2, 4, …
 *
 * A row whose length is no power of two is cut into blocks of the largest power of two that divides it. Every sum is
 * rounded to 32 bits, as the array does by itself, so that the bits are those of training.
 */
function hadamardRows(values, rowLength) {
  let size = 1;
  while (rowLength % (2 * size) === 0) size *= 2;
  const factor = Math.fround(size ** -0.5);
  for (let i = 0; i < values.length; i++) values[i] *= factor;
  for (let stride = 1; stride < size; stride *= 2) {
    for (let start = 0; start < values.length; start += 2 * stride) {
      for (let i = start; i < start + stride; i++) {
        const first = values[i], second = values[i + stride];
        values[i] = first + second;
        values[i + stride] = first - second;
      }
    }
  }
}

/**
 * Every weight of a network, ready to compute with, by the name that it has in training.
 *
 * @param {Uint8Array} file a safetensors file
 * @param {object} description what config.json says: `packed` has the shapes of ternary weights, `tied` has the names
 *   of weights that are another one
 */
function readWeights(file, description) {
  const weights = readSafetensors(file);
  for (const [name, shape] of Object.entries(description.packed)) {
    const packed = weights.get(`${name}.trits`).values, scales = weights.get(`${name}.scale`).values;
    weights.delete(`${name}.trits`);
    weights.delete(`${name}.scale`);
    const values = unpackTernary(packed, scales, shape.reduce((product, size) => product * size, 1));
    // These two were made ternary in another basis, where outliers are spread over all inputs; the way back is the
    // same transform.
    const isRotated = description.network.init_args.hadamard && /\.(router|dense\.up|dense\.down)\.weight$/.test(name);
    if (isRotated) hadamardRows(values, shape[shape.length - 1]);
    weights.set(name, { shape, values });
  }
  for (const [name, source] of Object.entries(description.tied)) weights.set(name, weights.get(source));
  return weights;
}
