// The view Types: what was measured of the loaded models, a button that measures, and the plot.

import { getJson, postStream } from "./api.js";
import { pareto } from "./pareto.js";
import { table } from "./scored_text.js";

const id = (name) => document.getElementById(name);

export class Types {
  constructor({ announce }) {
    this.announce = announce;
    id("measure").addEventListener("click", () => this.#measure());
    id("measure-stop").addEventListener("click", () => this.controller.abort());
  }

  async load() {
    if (this.controller) return; // a measurement shows its own
    try {
      this.#show(await getJson("/v1/measurements"));
      id("measure-note").textContent = "";
    } catch (error) {
      id("measure-note").textContent = error.message;
    }
  }

  async #measure() {
    this.controller = new AbortController();
    id("measure").disabled = true;
    id("measure-stop").hidden = false;
    this.#note("Measuring: a minute or two. Other requests slow it down.");
    try {
      for await (const event of postStream("/v1/measurements", {}, this.controller.signal)) {
        if (event.data) this.#show(event);
        else this.#note(`${Math.floor((100 * event.done) / event.of)} %: ${event.what}`);
      }
      this.#note("Measured.");
      this.announce("Measured.");
    } catch (error) {
      this.#note(error.name === "AbortError" ? "Stopped." : error.message);
    } finally {
      this.controller = null;
      id("measure").disabled = false;
      id("measure-stop").hidden = true;
    }
  }

  #note(text) {
    id("measure-note").textContent = text;
  }

  #show({ data }) {
    const columns = [
      "Model",
      "Size",
      "Bits per weight",
      "KL divergence",
      "Same top token",
      "Prompt tokens/s",
      "Decode tokens/s",
    ];
    const reference = data.find((one) => one.reference)?.reference;
    const rows = data.map((one) => [
      one.id,
      megabytes(one.bytes),
      one.bits_per_weight.toFixed(2),
      one.kld ? interval(one.kld) : [one.id, one.quant_type].includes(reference) ? "reference" : "",
      one.same_top == null ? "" : `${(100 * one.same_top).toFixed(1)} %`,
      rounded(one.prompt_tps),
      rounded(one.decode_tps),
    ]);
    const found = table(columns, rows);
    id("types-table").replaceChildren(...found.childNodes);
    const sources = new Set(data.map((one) => (one.source ? `${one.source}${when(one.measured_at)}` : "")));
    sources.delete("");
    id("types-source").textContent = sources.size ? `Source: ${[...sources].join("; ")}` : "Not measured yet.";
    const points = data
      .filter(({ kld }) => kld?.value > 0)
      .map((one) => ({ name: one.quant_type, x: one.bytes / 1e6, y: one.kld.value }));
    pareto(id("pareto"), points, reference);
  }
}

// With its 95 % interval.
function interval({ value, low, high }) {
  return `${value.toPrecision(3)} (${low.toPrecision(2)} to ${high.toPrecision(2)})`;
}

function rounded(rate) {
  return rate ? rate.median.toFixed(0) : "";
}

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

function when(seconds) {
  return seconds ? `, ${new Date(1000 * seconds).toLocaleString()}` : "";
}
