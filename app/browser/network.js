// A Tilelli network that reads one token at a time and says which may come next: plain JavaScript on typed arrays.
//
// The network is a stack of blocks. Each block normalises what it is given, lets several pathways look at it, and adds
// their outputs, weighed by a router, to what it was given. Of each pathway there are N banks, copies with weights of
// their own; the router chooses one for every token.
//
// Letters of shapes: D width of the network, d width of a query, N banks, P pathways, K taps, F hidden width, V tokens.
// Vectors are kept in 32 bits, as in training. A sum is made in JavaScript's 64 and then rounded, so that results are
// those of training up to about the seventh digit.
"use strict";

// -- arithmetic -------------------------------------------------------------------------------------------------------

/** A matrix times a vector. The matrix begins at `start` of `weights`, row by row; `y` has as many entries as rows. */
function multiply(weights, start, x, y) {
  const nInputs = x.length;
  for (let row = 0, at = start; row < y.length; row++) {
    // Four sums that do not wait for each other take half the time of one.
    let a = 0, b = 0, c = 0, d = 0, i = 0;
    for (; i + 3 < nInputs; i += 4, at += 4) {
      a += weights[at] * x[i];
      b += weights[at + 1] * x[i + 1];
      c += weights[at + 2] * x[i + 2];
      d += weights[at + 3] * x[i + 3];
    }
    for (; i < nInputs; i++, at++) a += weights[at] * x[i];
    y[row] = a + b + (c + d);
  }
}

/** LayerNorm: mean 0 and variance 1 over the entries, then a gain and a bias for each. */
function layerNorm(x, gain, bias, y) {
  let mean = 0, variance = 0;
  for (const value of x) mean += value / x.length;
  for (const value of x) variance += (value - mean) ** 2 / x.length;
  const factor = 1 / Math.sqrt(variance + 1e-5);
  for (let i = 0; i < x.length; i++) y[i] = (x[i] - mean) * factor * gain[i] + bias[i];
}

/** RMSNorm without a gain, in place: root mean square 1. */
function rmsNorm(x) {
  let square = 0;
  for (const value of x) square += value ** 2 / x.length;
  const factor = 1 / Math.sqrt(square + 1e-6);
  for (let i = 0; i < x.length; i++) x[i] *= factor;
}

/** Probabilities from logits, in place. The largest is taken off first: nothing then overflows. */
function softmax(x) {
  const largest = x.reduce((a, b) => Math.max(a, b), -Infinity);
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += x[i] = Math.exp(x[i] - largest);
  for (let i = 0; i < x.length; i++) x[i] /= sum;
}

/** The error function by its series, whose terms are all positive, so that none takes digits from another. */
function erf(x) {
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x, sum = x;
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) sum += term *= (2 * x * x) / (2 * n + 1);
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

/** Gaussian error linear unit: x times the probability that a standard normal number is below x. */
const gelu = (x) => 0.5 * x * (1 + erf(x * Math.SQRT1_2));

/** Positions of the k largest of the first n scores, largest first; of equals the lowest position comes first. */
function largestFirst(scores, n, k) {
  const found = [];
  for (let i = 0; i < n; i++) {
    if (found.length === k && !(scores[i] > scores[found[k - 1]])) continue;
    let place = found.length === k ? k - 1 : found.length;
    while (place > 0 && scores[i] > scores[found[place - 1]]) place--;
    found.splice(place, 0, i);
    found.length = Math.min(found.length, k);
  }
  return found;
}

// -- pathways: step(h, bank, y) reads one more input h and writes what it makes of it to y, both of D numbers ---------

/** A convolution over the last K inputs, each channel by itself; the last tap is for the present one. */
class CausalConvolution {
  constructor(weight) {
    [, this.D, this.K] = weight.shape; // (N, D, K)
    this.taps = weight.values;
    this.reset();
  }

  reset() {
    this.inputs = new Float32Array(this.K * this.D); // a ring: of the last K inputs the newest overwrites the oldest
    this.newest = -1;
  }

  step(h, bank, y) {
    const { D, K } = this;
    this.newest = (this.newest + 1) % K;
    this.inputs.set(h, this.newest * D);
    for (let channel = 0; channel < D; channel++) {
      const first = (bank * D + channel) * K;
      let sum = 0;
      for (let age = 0; age < K; age++) {
        sum += this.taps[first + K - 1 - age] * this.inputs[((this.newest - age + K) % K) * D + channel];
      }
      y[channel] = sum;
    }
  }
}

/** A memory that fades: in each channel state = decay * state + input, for all banks, since any may be asked next. */
class DiagonalState {
  constructor(decayLogit, inputGain, outputGain) {
    this.D = decayLogit.shape[1]; // (N, D)
    this.decay = decayLogit.values.map(Math.tanh);
    this.gain = inputGain.values.map((gain, i) => gain * outputGain.values[i]);
    this.reset();
  }

  reset() {
    this.state = new Float32Array(this.decay.length);
  }

  step(h, bank, y) {
    const { D, state, decay, gain } = this;
    for (let i = 0; i < state.length; i++) state[i] = decay[i] * state[i] + h[i % D];
    for (let channel = 0; channel < D; channel++) y[channel] = gain[bank * D + channel] * state[bank * D + channel];
  }
}

/** Attention to the few earlier inputs whose keys fit the query best. It remembers the keys of every bank. */
class SparseAttention {
  constructor(query, key, value, topK) {
    [this.N, this.d, this.D] = key.shape; // (N, d, D); value (N, D, D)
    Object.assign(this, { query: query.values, key: key.values, value: value.values, topK });
    this.oneQuery = new Float32Array(this.d);
    this.mixed = new Float32Array(this.D);
    this.reset();
  }

  reset() {
    this.length = 0;
    this.makeRoom(64);
  }

  makeRoom(capacity) {
    const grown = (old, size) => {
      const made = new Float32Array(size);
      if (this.length) made.set(old);
      return made;
    };
    this.keys = grown(this.keys, capacity * this.N * this.d); // by position, then by bank
    this.inputs = grown(this.inputs, capacity * this.D);
    this.scores = new Float32Array(capacity);
  }

  step(h, bank, y) {
    const { N, d, D, keys, oneQuery, mixed } = this;
    if (this.length === this.scores.length) {
      this.makeRoom(2 * this.length);
      return this.step(h, bank, y);
    }
    multiply(this.key, 0, h, keys.subarray(this.length * N * d, (this.length + 1) * N * d));
    this.inputs.set(h, this.length * D);
    this.length++;
    multiply(this.query, bank * d * D, h, oneQuery);
    for (let position = 0; position < this.length; position++) {
      const first = (position * N + bank) * d;
      let score = 0;
      for (let i = 0; i < d; i++) score += keys[first + i] * oneQuery[i];
      this.scores[position] = score / Math.sqrt(d);
    }
    const kept = largestFirst(this.scores, this.length, this.topK);
    const shares = Float32Array.from(kept, (position) => this.scores[position]);
    softmax(shares);
    // The value of a mixture is the mixture of the values: one product in place of one for each position.
    mixed.fill(0);
    kept.forEach((position, n) => {
      for (let i = 0; i < D; i++) mixed[i] += shares[n] * this.inputs[position * D + i];
    });
    multiply(this.value, bank * D * D, mixed, y);
  }
}

/** Two matrices with a GELU between them; it remembers nothing. */
class FeedForward {
  constructor(up, down) {
    [, this.F, this.D] = up.shape; // (N, F, D); down (N, D, F)
    Object.assign(this, { up: up.values, down: down.values, hidden: new Float32Array(this.F) });
  }

  reset() {}

  step(h, bank, y) {
    const { F, D, hidden } = this;
    multiply(this.up, bank * F * D, h, hidden);
    for (let i = 0; i < F; i++) hidden[i] = gelu(hidden[i]);
    multiply(this.down, bank * D * F, hidden, y);
  }
}

// -- router, block, network -------------------------------------------------------------------------------------------

/** Gives every bank of every pathway a probability; decides how much each pathway weighs, and which bank it uses. */
class Router {
  constructor(weight, bias, nBanks, options) {
    Object.assign(this, { weight: weight.values, bias: bias && bias.values, N: nBanks });
    this.kept = options.top_k_routing || Infinity;
    this.isSum = options.bank_gate === "sum";
    this.r = new Float32Array(weight.shape[0]); // (P N)
  }

  /** For each pathway `{ weight, bank }`. */
  route(h) {
    const { r, N, bias } = this;
    multiply(this.weight, 0, h, r);
    softmax(r);
    const isKept = new Array(r.length).fill(true);
    if (this.kept < r.length) {
      isKept.fill(false);
      for (const entry of largestFirst(r, r.length, this.kept)) isKept[entry] = true;
      let sum = 0;
      r.forEach((value, i) => (sum += r[i] = isKept[i] ? value : 0));
      r.forEach((value, i) => (r[i] = value / Math.max(sum, 1e-12)));
    }
    const score = bias ? r.map((value, i) => (isKept[i] ? value + bias[i] : -Infinity)) : r;
    const routes = [];
    for (let first = 0; first < r.length; first += N) {
      let bank = 0;
      for (let n = 1; n < N; n++) if (score[first + n] > score[first + bank]) bank = n;
      const ofPathway = r.subarray(first, first + N);
      routes.push({ bank, weight: this.isSum ? ofPathway.reduce((a, b) => a + b, 0) : ofPathway[bank] });
    }
    return routes;
  }
}

/** One block: x becomes x + sum over the pathways of weight * pathway(norm(x)). */
class Block {
  constructor(weights, prefix, options) {
    const get = (name) => weights.get(`${prefix}.${name}`);
    Object.assign(this, { gain: get("norm.weight").values, shift: get("norm.bias").values });
    const isFull = options.pathways === 5;
    this.pathways = [
      new CausalConvolution(get("local.weight")),
      ...(isFull ? [new CausalConvolution(get("wide.weight"))] : []),
      new DiagonalState(get("state.decay_logit"), get("state.input_gain"), get("state.output_gain")),
      new SparseAttention(get("sparse.query.weight"), get("sparse.key.weight"), get("sparse.value.weight"), options.top_k),
      ...(isFull ? [new FeedForward(get("dense.up.weight"), get("dense.down.weight"))] : []),
    ];
    this.router = new Router(get("router.weight"), get("router_bias"), options.n_banks, options);
    this.isNormed = options.path_norm;
    this.h = new Float32Array(this.gain.length);
    this.y = new Float32Array(this.gain.length);
  }

  reset() {
    for (const pathway of this.pathways) pathway.reset();
  }

  /** Changes x. */
  step(x) {
    const { h, y } = this;
    layerNorm(x, this.gain, this.shift, h);
    const routes = this.router.route(h);
    this.pathways.forEach((pathway, p) => {
      pathway.step(h, routes[p].bank, y);
      if (this.isNormed) rmsNorm(y);
      for (let i = 0; i < x.length; i++) x[i] += routes[p].weight * y[i];
    });
  }
}

/** The whole network. */
class Tilelli {
  /**
   * @param {Map} weights of `readWeights`
   * @param {object} description what config.json says
   */
  constructor(weights, description) {
    const options = description.network.init_args;
    const get = (name) => weights.get(name)?.values;
    this.weights = weights;
    this.embedding = get("tok_emb.weight"); // (V, D)
    this.positions = get("pos_emb.weight");
    /** The longest text that it reads at once; any, where order alone tells positions. */
    this.window = this.positions ? description.block_size : Infinity;
    this.blocks = [];
    for (let n = 0; n < options.n_layers; n++) this.blocks.push(new Block(weights, `blocks.${n}`, options));
    Object.assign(this, { gain: get("norm_f.weight"), shift: get("norm_f.bias"), head: get("head.weight") });
    this.x = new Float32Array(this.gain.length);
    this.h = new Float32Array(this.gain.length);
    this.logits = new Float32Array(weights.get("head.weight").shape[0]);
    this.reset();
  }

  /** Forgets all that it has read. */
  reset() {
    this.length = 0;
    for (const block of this.blocks) block.reset();
  }

  /** Reads one more token; the logits of the next one, (V), are overwritten by the next call. */
  step(token) {
    const { x, h } = this, D = x.length;
    for (let i = 0; i < D; i++) {
      x[i] = this.embedding[token * D + i] + (this.positions ? this.positions[this.length * D + i] : 0);
    }
    this.length++;
    for (const block of this.blocks) block.step(x);
    layerNorm(x, this.gain, this.shift, h);
    multiply(this.head, 0, h, this.logits);
    return this.logits;
  }
}

// -- generation -------------------------------------------------------------------------------------------------------

/**
 * Continues a text for ever, token by token.
 *
 * A text that has grown beyond the network's window goes on from the last half of the window.
 *
 * @param {Tilelli} network
 * @param {number[]} prompt at least one token
 * @param {function} choose from logits to a token
 */
function* continued(network, prompt, choose) {
  let context = [...prompt], unread = context;
  network.reset();
  while (true) {
    if (context.length > network.window) {
      unread = context = context.slice(-Math.max(1, Math.floor(network.window / 2)));
      network.reset();
    }
    let logits;
    for (const token of unread) logits = network.step(token);
    const token = choose(logits);
    yield token;
    context.push(token);
    unread = [token];
  }
}

/** The likeliest token, the first of equals. */
function likeliest(logits) {
  let best = 0;
  for (let token = 1; token < logits.length; token++) if (logits[token] > logits[best]) best = token;
  return best;
}

/**
 * A function that draws a token by its probability.
 *
 * @param {number} temperature divides the logits: near 0 the likeliest token always wins, above 1 rare ones come more
 * @param {number} seed the same seed draws the same text
 */
function sampler(temperature, seed) {
  const random = mulberry32(seed);
  return (logits) => {
    const largest = logits[likeliest(logits)];
    // From the largest down: a small temperature then makes probabilities of 0, and never infinity less infinity.
    const probabilities = Float64Array.from(logits, (logit) => (logit - largest) / Math.max(temperature, 1e-30));
    softmax(probabilities);
    let left = random();
    for (let token = 0; token < logits.length; token++) if ((left -= probabilities[token]) < 0) return token;
    return likeliest(logits); // what rounding has left over
  };
}

/** Random numbers in [0, 1) from a 32-bit seed (mulberry32 by Tommy Ettinger, public domain). */
function mulberry32(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
