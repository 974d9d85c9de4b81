// What the page does: reads the network that it carries, and writes on when it is asked to.
"use strict";

const element = (id) => document.getElementById(id);
const description = JSON.parse(element("config").textContent);
const tokenizer = readTokenizer(JSON.parse(element("tokenizer").textContent));
const network = new Tilelli(readWeights(decodeBase64(element("weights").textContent), description), description);

/** Milliseconds of work between two looks at the keyboard; a pause takes up to four. */
const SLICE = 40;
/** The text that is being written; whoever sets `isWanted` to false ends it. */
let writing = { isWanted: false };

/** Lets the browser draw and hear. */
const pause = () => new Promise((resolve) => setTimeout(resolve));

/** Writes on from the prompt, until so many tokens are there or somebody stops it. */
async function write() {
  writing.isWanted = false;
  const own = (writing = { isWanted: true }), say = (text) => (element("said").textContent = text);
  const [nWanted, temperature, seed] = ["tokens", "temperature", "seed"].map((id) => Number(element(id).value));
  const prompt = element("prompt").value;
  let stream;
  try {
    const start = tokenizer.encode(prompt);
    const choose = temperature > 0 ? sampler(temperature, seed) : likeliest;
    stream = continued(network, start.length ? start : tokenizer.start, choose);
  } catch (error) {
    return say(error.message);
  }
  const decode = tokenizer.decoder(), written = document.createTextNode("");
  element("output").replaceChildren(Object.assign(document.createElement("b"), { textContent: prompt }), written);
  element("stop").disabled = false;
  say("writing …");
  const began = performance.now();
  let nTokens = 0;
  while (own.isWanted && nTokens < nWanted) {
    const until = performance.now() + SLICE;
    for (; nTokens < nWanted && performance.now() < until; nTokens++) written.appendData(decode(stream.next().value));
    await pause();
  }
  if (own !== writing) return; // another text has taken its place
  const rate = nTokens / ((performance.now() - began) / 1000);
  element("stop").disabled = true;
  say(`${nTokens.toLocaleString("en")} tokens, ${Math.round(rate).toLocaleString("en")} a second`);
}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  write();
});
element("stop").addEventListener("click", () => (writing.isWanted = false));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") writing.isWanted = false;
  // A line end belongs to the prompt; with Ctrl or the command key it means what it means in every other field.
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) element("form").requestSubmit();
});
