// The ten likeliest tokens at a place of the text: under the pointer, or at the cursor with arrow keys.

import { activate, option, placeUnder, release } from "./popup.js";
import { percent, visible } from "./text.js";

const REST = 160; // ms that the pointer rests before the list opens, or is away before it closes

export class TokenList {
  // `picked(token, text)` is called with what shall replace a token.
  constructor({ editor, shading, root, announce, failed, picked }) {
    Object.assign(this, { editor, shading, root, announce, failed, picked });
    this.list = root.querySelector("ul");
    this.title = root.querySelector(".token-title");
    this.byKeys = false;
    editor.element.addEventListener("pointermove", (event) => event.pointerType === "mouse" && this.#rest(event));
    editor.element.addEventListener("pointerleave", () => this.#away());
    root.addEventListener("pointerenter", () => clearTimeout(this.timer));
    root.addEventListener("pointerleave", () => this.#away());
    root.addEventListener("mousedown", (event) => event.preventDefault());
  }

  get isOpen() {
    return !this.root.hidden;
  }

  #rest({ clientX, clientY, buttons }) {
    if (this.byKeys || buttons || !this.shading.enabled) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      const number = this.shading.at(this.editor.offsetAt(clientX, clientY));
      if (number >= 0) this.#open(number);
      else this.close();
    }, REST);
  }

  #away() {
    clearTimeout(this.timer);
    if (!this.byKeys) this.timer = setTimeout(() => this.close(), 2 * REST);
  }

  // The list at the cursor; the arrow keys then go from token to token.
  async inspect(offset = this.editor.selection[0]) {
    if (this.shading.stale) await this.shading.refresh();
    const number = this.shading.at(offset);
    if (number < 0) return this.announce("There is no scored token at the cursor.");
    this.byKeys = true;
    this.editor.focus();
    return this.#open(number);
  }

  // Whether the key was used.
  key({ key }) {
    if (!this.byKeys) return false;
    const last = this.shading.tokens.length - 1;
    if (key === "ArrowLeft") this.#open(Math.max(0, this.number - 1));
    else if (key === "ArrowRight") this.#open(Math.min(last, this.number + 1));
    else if (key === "ArrowDown") this.#choose(this.chosen + 1);
    else if (key === "ArrowUp") this.#choose(this.chosen - 1);
    else if (key === "Enter") this.list.children[this.chosen]?.click();
    else if (key === "Escape") this.close();
    else return false;
    return true;
  }

  close() {
    clearTimeout(this.timer);
    this.controller?.abort();
    if (this.root.hidden) return;
    this.root.hidden = true;
    this.shown = null;
    if (this.byKeys) {
      this.byKeys = false;
      this.editor.select(this.token.end);
    }
    if (this.editor.canHighlight) CSS.highlights.delete("token");
    release(this.editor);
  }

  async #open(number) {
    const token = this.shading.tokens[number];
    if (this.shown === token) return;
    this.controller?.abort();
    const controller = (this.controller = new AbortController());
    Object.assign(this, { number, token, shown: token, chosen: -1 });
    const name = `“${visible(token.text)}”`;
    let likely = token.logprob === null ? "the first token has no probability" : percent(token.logprob);
    this.title.textContent = `${name}: ${likely}`;
    if (this.byKeys) this.editor.select(token.start, token.end);
    if (this.editor.canHighlight) {
      CSS.highlights.set("token", new Highlight(this.editor.range(token.start, token.end)));
    }
    this.list.replaceChildren();
    let top = [];
    try {
      top = await this.shading.top(token, controller.signal);
    } catch (error) {
      if (error.name !== "AbortError") this.failed(error.message);
      return;
    }
    if (controller.signal.aborted) return;
    // computed for this place alone, which rounds otherwise than for the whole text: show one number only
    const same = top.find(([text]) => text === token.text);
    if (same) likely = percent(same[1]);
    this.title.textContent = `${name}: ${likely}`;
    this.list.replaceChildren(...top.map(([text, logprob], index) => this.#row(text, logprob, index)));
    placeUnder(this.root, this.editor.rectangle(Math.max(token.start, token.end - 1)), !this.byKeys);
    if (!this.byKeys) return;
    activate(this.editor, this.list, -1);
    const best = top.slice(0, 3).map(([text, logprob]) => `${visible(text)} ${percent(logprob)}`);
    this.announce(`${name}: ${likely}. Likeliest: ${best.join(", ")}`);
  }

  #row(text, logprob, index) {
    const row = option(`likely-${index}`, () => {
      const { token } = this;
      if (row.ariaDisabled) return;
      this.close();
      this.picked(token, text);
    });
    const [name, bar, share] = ["span", "i", "span"].map((tag) => document.createElement(tag));
    name.textContent = visible(text);
    name.className = "name";
    bar.style.width = `${Math.max(1, 100 * Math.exp(logprob))}%`;
    share.textContent = percent(logprob);
    share.className = "share";
    row.append(name, share, bar);
    row.classList.toggle("here", text === this.token.text);
    if (text.startsWith("bytes:") || /^<\|.*\|>$/.test(text)) row.ariaDisabled = "true"; // no text of its own
    return row;
  }

  #choose(index) {
    const count = this.list.children.length;
    if (!count) return;
    this.chosen = (index + count) % count;
    activate(this.editor, this.list, this.chosen);
  }
}

// The scored tokens as a table; `go(token)` is called for the one that is chosen.
export function fillTable(table, tokens, go) {
  const head = table.createTHead();
  head.replaceChildren();
  for (const title of ["Token", "Probability", "Likeliest here", "Its probability"]) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = title;
    (head.rows[0] ?? head.insertRow()).append(cell);
  }
  const body = table.tBodies[0] ?? table.createTBody();
  body.replaceChildren();
  for (const token of tokens) {
    const row = body.insertRow();
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = visible(token.text);
    button.setAttribute("aria-label", `${visible(token.text)}: the ten likeliest here`);
    button.addEventListener("click", () => go(token));
    row.insertCell().append(button);
    row.insertCell().textContent = token.logprob === null ? "none" : percent(token.logprob);
    const [text, logprob] = token.likeliest ?? [];
    row.insertCell().textContent = text === undefined ? "" : visible(text);
    row.insertCell().textContent = text === undefined ? "" : percent(logprob);
  }
}
