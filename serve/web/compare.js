// The view Compare: one prompt continued by each model, and one text scored by each.

import { postJson, postStream } from "./api.js";
import { scoredText, scrolling, table } from "./scored_text.js";
import { contextSize, modelList, settings } from "./settings.js";
import { tail, visible } from "./text.js";

const MOST = 4; // models
const ENTRIES = 1 << 17; // of top lists that the server sends

const id = (name) => document.getElementById(`compare-${name}`);

export class Compare {
  constructor({ announce, textOfWrite }) {
    this.announce = announce;
    id("continue").addEventListener("click", () => this.#run((signal) => this.#continueEach(signal)));
    id("score").addEventListener("click", () => this.#run((signal) => this.#score(signal)));
    id("stop").addEventListener("click", () => this.controller.abort());
    id("take").addEventListener("click", () => (id("text").value = tail(textOfWrite(), 2000)));
    id("form").addEventListener("submit", (event) => event.preventDefault());
    id("models").addEventListener("change", () => this.#limit());
    id("text").value = "Once upon a time, in a small house by the sea, there lived";
  }

  setModels() {
    const boxes = modelList().map(({ id: name }, number) => {
      const label = document.createElement("label");
      const box = document.createElement("input");
      box.type = "checkbox";
      box.value = name;
      box.checked = number < MOST;
      label.append(box, ` ${name}`);
      return label;
    });
    id("models").replaceChildren(...boxes);
    id("reference").replaceChildren(...modelList().map(({ id: name }) => new Option(name, name)));
    this.#limit();
  }

  #limit() {
    const boxes = [...id("models").querySelectorAll("input")];
    const chosen = boxes.filter((box) => box.checked).length;
    for (const box of boxes) box.disabled = chosen >= MOST && !box.checked;
  }

  // The chosen models, the reference first.
  get #models() {
    const chosen = [...id("models").querySelectorAll("input:checked")].map(({ value }) => value);
    const reference = id("reference").value;
    return [reference, ...chosen.filter((name) => name !== reference)].slice(0, MOST);
  }

  async #run(work) {
    this.controller?.abort();
    const controller = (this.controller = new AbortController());
    id("stop").hidden = false;
    id("note").textContent = "";
    try {
      if (this.#models.length < 2) throw new Error("Choose at least one model in addition to the reference.");
      await work(controller.signal);
    } catch (error) {
      id("note").textContent = error.name === "AbortError" ? "Stopped." : error.message;
    } finally {
      if (this.controller === controller) id("stop").hidden = true;
    }
  }

  // One after another: each model has the processor for itself, so that the speeds can be compared.
  async #continueEach(signal) {
    const seed = settings.seed === "" ? Math.floor(Math.random() * 1e9) : Number(settings.seed);
    const columns = this.#models.map((model) => new Column(model));
    id("streams").replaceChildren(...columns.map(({ root }) => root));
    for (const column of columns) await column.stream(id("text").value, seed, signal, columns[0]);
    const places = columns.slice(1).map(({ model, place }) => `${model}: ${place}`);
    this.announce(`Continued by ${columns.length} models. First difference from ${columns[0].model}: ${places}`);
  }

  async #score(signal) {
    const text = id("text").value;
    const models = this.#models;
    id("note").textContent = "Scoring…";
    const body = { content: text, model: models[0], add_special: true, parse_special: false };
    const { tokens } = await postJson("/tokenize", body, signal);
    const top = Math.min(10, Math.floor(ENTRIES / models.length / Math.max(1, tokens.length)));
    const found = await postJson("/v1/compare", { text, models, top }, signal);
    const [reference, ...others] = found.models;
    if (!reference.positions) throw new Error("The text needs at least two tokens.");
    const rows = found.models.map((model) => [
      model.id,
      model.perplexity.toFixed(3),
      model.mean_nll.toFixed(4),
      ...(model === reference
        ? ["reference", ""]
        : [model.mean_kld.toFixed(5), `${(100 * model.same_top).toFixed(1)} %`]),
    ]);
    const title = document.createElement("h2");
    title.textContent = `${reference.positions} tokens, scored by ${models.length} models`;
    const columns = ["Model", "Perplexity", "Mean loss (nats)", "Mean KL divergence", "Same top token"];
    const summary = scrolling(table(columns, rows), "Summary");
    id("scores").replaceChildren(
      title,
      summary,
      ...others.map((other) => scoredText(text, found.tokens, reference, other)),
    );
    id("note").textContent = "";
    this.announce(`${title.textContent}.`);
  }
}

// A continuation by one model, with the first token that differs from the reference's.
class Column {
  constructor(model) {
    this.model = model;
    this.root = document.createElement("section");
    this.root.className = "card";
    const title = document.createElement("h2");
    title.textContent = model;
    this.text = document.createElement("p");
    this.text.className = "continuation";
    this.facts = document.createElement("p");
    this.facts.className = "hint";
    this.facts.textContent = "waiting";
    this.root.append(title, this.text, this.facts);
    this.ids = [];
    this.pieces = []; // {text, from}: the number of its first token
    this.place = "none";
  }

  async stream(prompt, seed, signal, reference) {
    const length = Math.min(settings.length, contextSize(this.model) >> 1);
    const body = {
      model: this.model,
      prompt,
      stream: true,
      max_tokens: length,
      temperature: settings.temperature,
      top_p: settings.top_p,
      seed,
      return_token_ids: true,
      truncate_prompt_tokens: contextSize(this.model) - length,
    };
    let first = 0;
    for await (const { choices } of postStream("/v1/completions", body, signal)) {
      for (const { text, token_ids: ids } of choices) {
        first ||= performance.now();
        this.pieces.push({ text, from: this.ids.length });
        this.ids.push(...ids);
        const last = this.pieces.at(-1);
        last.to = this.ids.length;
        this.#show(last, reference);
      }
      const seconds = (performance.now() - first) / 1000;
      const speed = this.ids.length > 1 && seconds > 0 ? `, ${((this.ids.length - 1) / seconds).toFixed(0)} tokens/s` : "";
      this.facts.textContent = `${this.ids.length} tokens${speed}`;
    }
    if (reference === this) this.facts.textContent += ", reference";
    else this.facts.textContent += this.place === "none" ? ", same tokens as the reference" : `, first difference: ${this.place}`;
  }

  #show({ text, from, to }, reference) {
    const shown = document.createTextNode(visible(text));
    const differs = this.ids.findIndex((token, index) => token !== reference.ids[index]);
    if (reference === this || differs < from || differs >= to) {
      this.text.append(shown);
      return;
    }
    const mark = document.createElement("mark");
    mark.append(shown);
    this.text.append(mark);
    this.place = `token ${differs + 1}`;
  }
}
