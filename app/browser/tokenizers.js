// Text to tokens and back. Each tokenizer has encode(text), `start` (what an empty prompt stands for), and decoder(),
// a function that is given tokens one at a time and returns the text that has become complete.
"use strict";

/** One token for each character of an alphabet. */
class CharTokenizer {
  constructor({ alphabet }) {
    this.characters = Array.from(alphabet);
    this.ids = new Map(this.characters.map((character, id) => [character, id]));
    this.start = [this.ids.get("\n") ?? 0];
  }

  encode(text) {
    return Array.from(text, (character) => {
      if (!this.ids.has(character)) throw new RangeError(`The network does not know the character “${character}”.`);
      return this.ids.get(character);
    });
  }

  decoder() {
    return (token) => this.characters[token];
  }
}

/** Tokens that are bytes of UTF-8, one or several. */
class BytesTokenizer {
  decoder() {
    // A character may be spread over several tokens: a streaming decoder keeps its beginning until it is complete.
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    return (token) => decoder.decode(this.bytesOf(token), { stream: true });
  }
}

/** One token for each byte. */
class ByteTokenizer extends BytesTokenizer {
  start = [10]; // a line end

  encode(text) {
    return Array.from(new TextEncoder().encode(text));
  }

  bytesOf(token) {
    return Uint8Array.of(token);
  }
}

/** Byte-pair encoding: from single bytes on, the pair of neighbours that was learnt first is merged, again and again. */
class BPETokenizer extends BytesTokenizer {
  // GPT-2's pattern of words, numbers and signs; pairs are merged within a match alone.
  static PARTS =
    /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

  constructor({ tokens, merges }) {
    super();
    const characters = BPETokenizer.printable(), byteOf = new Map(characters.map((character, byte) => [character, byte]));
    this.bytes = tokens.map((token) => {
      const own = Array.from(token, (character) => byteOf.get(character));
      return own.includes(undefined) ? new TextEncoder().encode(token) : Uint8Array.from(own);
    });
    const idOf = new Map(tokens.map((token, id) => [token, id]));
    this.idOfByte = characters.map((character) => idOf.get(character));
    this.merges = new Map(
      merges.map(([left, right], rank) => [`${left} ${right}`, { rank, id: idOf.get(tokens[left] + tokens[right]) }]),
    );
    this.start = this.encode("\n");
  }

  /** GPT-2's character for each of the 256 bytes: itself where it is printable, else one from U+0100 on. */
  static printable() {
    let next = 256;
    return Array.from({ length: 256 }, (_, byte) => {
      const isPrintable = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
      return String.fromCodePoint(isPrintable ? byte : next++);
    });
  }

  encode(text) {
    return (text.match(BPETokenizer.PARTS) ?? []).flatMap((part) => {
      const ids = Array.from(new TextEncoder().encode(part), (byte) => this.idOfByte[byte]);
      while (true) {
        let best = null, at = -1;
        for (let i = 0; i + 1 < ids.length; i++) {
          const merge = this.merges.get(`${ids[i]} ${ids[i + 1]}`);
          if (merge && (!best || merge.rank < best.rank)) [best, at] = [merge, i];
        }
        if (!best) return ids;
        ids.splice(at, 2, best.id);
      }
    });
  }

  bytesOf(token) {
    return this.bytes[token];
  }
}

/** The tokenizer that a tokenizer.json describes. */
function readTokenizer(values) {
  const KINDS = { char: CharTokenizer, byte: ByteTokenizer, bpe: BPETokenizer, gpt2: BPETokenizer };
  return new KINDS[values.kind](values);
}
