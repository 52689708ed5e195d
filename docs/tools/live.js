// Two trained models that run in the pages: bigram.py's table, and v2_attention.py with
// its weights in 8 bits. weights_*.js hold the weights; docs/tools/weights.py made them.
"use strict";

// ------------------------------------------------------------------------ The models
function bytesOf(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
}

// Integers and a scale for each row, as rows of numbers
function matrixOf({ shape, integers, scales }) {
  const all = new Int8Array(bytesOf(integers));
  const factors = new Float32Array(bytesOf(scales));
  const width = shape[shape.length - 1];
  const rows = [];
  for (let i = 0; i < factors.length; i++) {
    const row = all.subarray(i * width, (i + 1) * width);
    rows.push(Float32Array.from(row, (integer) => integer * factors[i]));
  }
  return rows;
}

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

class Bigram {
  constructor({ chars, table, loss }) {
    this.chars = [...chars];
    this.loss = loss;
    const numbers = new Float32Array(bytesOf(table));
    const V = this.chars.length;
    this.table = this.chars.map((_, i) => numbers.subarray(i * V, (i + 1) * V));
  }

  // The logits of the character that follows
  next(ids) {
    return this.table[ids[ids.length - 1]];
  }
}

class Attention {
  constructor(weights) {
    this.chars = [...weights.chars];
    this.block_size = weights.block_size;
    this.facts = weights;
    const matrix = (name) => matrixOf(weights.tensors[name]);
    this.wte = matrix("wte.weight");
    this.wpe = matrix("wpe.weight");
    this.lm_head = matrix("lm_head.weight");
    this.heads = [];
    for (let n = 0; n < weights.n_head; n++) {
      const head = {};
      for (const name of ["query", "key", "value"]) {
        head[name] = this.linear(weights, `attn.heads.${n}.${name}`);
      }
      this.heads.push(head);
    }
    this.c_proj = this.linear(weights, "attn.c_proj");
  }

  // The function of a linear layer, for a single vector
  linear(weights, name) {
    const rows = matrixOf(weights.tensors[`${name}.weight`]);
    const [bias] = matrixOf(weights.tensors[`${name}.bias`]);
    return (x) => Float32Array.from(rows, (row, i) => dot(row, x) + bias[i]);
  }

  // {logits: of every position, weights: [head][position that looks][position]}
  run(ids) {
    const x = ids.map((id, t) => this.wte[id].map((v, c) => v + this.wpe[t][c]));
    const found = ids.map(() => []);
    const weights = [];
    for (const head of this.heads) {
      const q = x.map(head.query);
      const k = x.map(head.key);
      const v = x.map(head.value);
      const size = q[0].length;
      const table = q.map((query, t) => {
        const past = k.slice(0, t + 1);  // not the future
        return softmax(past.map((key) => dot(query, key) / Math.sqrt(size)));
      });
      table.forEach((row, t) => {
        for (let i = 0; i < size; i++) {
          found[t].push(row.reduce((sum, weight, j) => sum + weight * v[j][i], 0));
        }
      });
      weights.push(table);
    }
    const logits = found.map((vector) => {
      const mixed = this.c_proj(vector);
      return this.lm_head.map((row) => dot(row, mixed));
    });
    return { logits, weights };
  }

  next(ids) {
    const { logits } = this.run(ids.slice(-this.block_size));
    return logits[logits.length - 1];
  }
}

// ------------------------------------------------------------------------ The widgets
const SHOWN = { " ": "␣", "\n": "↵" };
const show = (c) => SHOWN[c] ?? c;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function idsOf(model, text) {
  return [...text].map((c) => model.chars.indexOf(c)).filter((id) => id >= 0);
}

function draw(probabilities) {
  let rest = Math.random();
  const found = probabilities.findIndex((p) => (rest -= p) < 0);
  return found < 0 ? probabilities.length - 1 : found;
}

// The probabilities at a temperature; at 0 all goes to the likeliest
function atTemperature(logits, temperature) {
  if (temperature > 0) {
    return softmax(Array.from(logits, (logit) => logit / temperature));
  }
  const largest = Math.max(...logits);
  const best = Array.from(logits).indexOf(largest);
  return Array.from(logits, (_, i) => (i === best ? 1 : 0));
}

// What all widgets share: a text, a temperature, bars, and a button that writes
function widget(place, model, start, changed) {
  const input = element("input", { type: "text", value: start, spellcheck: false });
  const range = { type: "range", min: 0, max: 2, step: 0.1, value: 0.8 };
  const slider = element("input", range);
  const degrees = element("output", {}, "0.8");
  const bars = element("div", { className: "bars" });
  const written = element("output", { className: "written" });
  written.setAttribute("aria-label", "What the model wrote");
  const write = element("button", { type: "button" }, "Write 100 characters");
  place.append(
    element("label", {}, "Type something: ", input),
    element("label", {}, "Temperature: ", slider, " ", degrees),
    bars,
    write,
    written,
  );

  function update() {
    degrees.textContent = Number(slider.value).toFixed(1);
    const ids = idsOf(model, input.value);
    const logits = changed(ids, bars);
    bars.replaceChildren();
    if (!logits) return;
    const probabilities = atTemperature(logits, Number(slider.value));
    const order = probabilities.map((p, i) => [p, i]).sort((a, b) => b[0] - a[0]);
    for (const [p, id] of order.slice(0, 8)) {
      const bar = element("span");
      bar.style.width = `${(100 * p) / order[0][0]}%`;
      const percent = `${(100 * p).toFixed(1)}%`;
      const name = element("span", {}, show(model.chars[id]));
      bars.append(name, bar, element("span", {}, percent));
    }
  }

  write.onclick = () => {
    const ids = idsOf(model, input.value);
    if (!ids.length) return;
    for (let n = 0; n < 100; n++) {
      ids.push(draw(atTemperature(model.next(ids), Number(slider.value))));
    }
    written.textContent = ids.map((id) => model.chars[id]).join("");
  };
  input.oninput = slider.oninput = update;
  return { input, update };
}

function liveBigram(place) {
  const model = new Bigram(bigram_weights);
  const words = element("p");
  const { update } = widget(place, model, "The king is th", (ids) => {
    if (!ids.length) return null;
    const last = model.chars[ids[ids.length - 1]];
    words.textContent = `After “${show(last)}”, the model expects:`;
    return model.next(ids);
  });
  place.querySelector(".bars").before(words);
  update();
}

function liveAttention(place) {
  const model = new Attention(attention_weights);
  const heads = element("div");
  const words = element("p");
  let chosen = Infinity;
  const range = { type: "range", min: 1, value: 64 };
  const position = element("input", range);

  function paint(ids, weights, at) {
    heads.replaceChildren();
    weights.forEach((table, n) => {
      const row = element("div");
      ids.forEach((id, j) => {
        const weight = j <= at ? table[at][j] : 0;
        const letter = element("span", {}, show(model.chars[id]));
        letter.style.background = `rgba(var(--heat), ${(0.65 * weight).toFixed(3)})`;
        letter.title = j <= at ? `${(100 * weight).toFixed(0)}%` : "the future: hidden";
        if (j === at) letter.className = "looks";
        if (j > at) letter.className = "future";
        letter.onmouseenter = letter.onclick = () => choose(j);
        row.append(letter);
      });
      const title = element("b", {}, `Head ${n + 1}`);
      heads.append(element("div", { className: "head" }, title, row));
    });
  }

  function choose(j) {
    if (j === chosen) return;
    chosen = j;
    position.value = j + 1;
    update();
  }

  const { input, update } = widget(place, model, "My noble father, what is th", (all) => {
    const ids = all.slice(-model.block_size);
    heads.replaceChildren();
    words.textContent = "";
    if (!ids.length) return null;
    const { logits, weights } = model.run(ids);
    const at = Math.min(chosen, ids.length - 1);
    position.max = ids.length;
    position.value = at + 1;
    paint(ids, weights, at);
    const letter = show(model.chars[ids[at]]);
    words.textContent = `After “${letter}” at place ${at}, the model expects:`;
    return logits[at];
  });
  input.addEventListener("input", () => {
    chosen = Infinity;
    update();
  });
  position.oninput = () => choose(Number(position.value) - 1);
  const label = element("label", {}, "The position that looks: ", position);
  const facts = model.facts;
  const note =
    "Hover over a letter, or tap it: the stronger the color, the more that head looks " +
    "there.";
  const rounding =
    "The weights are rounded to 8 bits. That moves a logit by " +
    `${facts["mean error of a logit"].toFixed(2)} on average, and the val loss from ` +
    `${facts.loss.toFixed(4)} to ${facts["loss in 8 bits"].toFixed(4)}.`;
  place.querySelector(".bars").before(
    label, heads, element("p", { className: "note" }, note), words,
  );
  place.append(element("p", { className: "note" }, rounding));
  update();
}

for (const place of document.querySelectorAll(".live")) {
  if (place.dataset.model === "bigram") liveBigram(place);
  else liveAttention(place);
}
