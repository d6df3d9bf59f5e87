// Three continuations at the cursor, streamed into a list; asking again adds three more, and all are kept.

import { getJson, postStream } from "./api.js";
import { activate, option, placeUnder, release } from "./popup.js";
import { chosenModel, contextSize, setModels, settings } from "./settings.js";
import { firstWord, sentenceEnd, tail, visible } from "./text.js";

const COUNT = 3;
const SENTENCE_TOKENS = 80; // at most, for "to the end of the sentence"
const CHARACTERS = 3; // of a token, at least, in most texts: longer prompts are cut by the server

export class Suggestions {
  // `accepted(start, end)` is called after text was inserted, `inserting()` before.
  constructor({ editor, root, announce, inserting, accepted }) {
    Object.assign(this, { editor, root, announce, inserting, accepted });
    this.list = root.querySelector("ul");
    this.note = root.querySelector(".note");
    this.sets = [];
    this.busy = false; // text of our own is being inserted
    root.addEventListener("mousedown", (event) => event.preventDefault());
    root.addEventListener("click", (event) => {
      const what = event.target.closest("[data-do]")?.dataset.do;
      if (what === "previous") this.show(this.current - 1);
      if (what === "next") this.show(this.current + 1);
      if (what === "word") this.takeWord();
      if (what === "more") this.more();
      if (what === "close") this.close();
      if (what === "retry") this.retry();
    });
  }

  get isOpen() {
    return !this.root.hidden;
  }

  get set() {
    return this.sets[this.current];
  }

  open(sentence = false) {
    this.close();
    this.sentence = sentence;
    this.at = this.editor.selection[1];
    this.editor.focus();
    this.editor.select(this.at);
    this.seed = settings.seed === "" ? Math.floor(Math.random() * 1e9) : Number(settings.seed);
    this.#add();
    placeUnder(this.root, this.editor.rectangle(this.at));
  }

  // The next set of the history, or three new ones.
  more() {
    if (this.current < this.sets.length - 1) this.show(this.current + 1);
    else this.#add();
  }

  show(index) {
    if (index < 0 || index >= this.sets.length) return;
    this.current = index;
    this.chosen = 0;
    this.#build();
  }

  // A server that was restarted may have other models.
  async retry() {
    const { set, current: number } = this;
    try {
      setModels((await getJson("/v1/models")).data);
    } catch {} // the stream reports it, too
    if (this.set !== set) return;
    this.sets.splice(number, 1);
    this.#add(number);
  }

  move(step) {
    const count = this.set.items.length;
    this.chosen = (this.chosen + step + count) % count;
    activate(this.editor, this.list, this.chosen);
  }

  accept(index = this.chosen) {
    const text = this.#textOf(this.set.items[index]);
    if (!text) return;
    this.#insert(text);
    this.close();
  }

  // Inserts the first word of the chosen continuation; those that begin otherwise leave the list.
  takeWord() {
    const chosen = this.set.items[this.chosen];
    const text = this.#textOf(chosen);
    const word = text.slice(0, firstWord(text));
    if (!word) return;
    this.#insert(word);
    this.at += word.length;
    this.set.items = this.set.items.filter((item) => this.#textOf(item).startsWith(word));
    for (const item of this.set.items) item.taken += word.length;
    for (const set of this.sets) if (set !== this.set) set.controller.abort();
    this.sets = [this.set];
    this.current = 0;
    this.chosen = this.set.items.indexOf(chosen);
    if (chosen.done && !this.#textOf(chosen)) this.close();
    else {
      this.#build();
      placeUnder(this.root, this.editor.rectangle(this.at));
    }
  }

  close() {
    for (const set of this.sets) set.controller.abort();
    this.sets = [];
    this.current = 0;
    this.chosen = 0;
    if (this.root.hidden) return;
    this.root.hidden = true;
    release(this.editor);
  }

  #insert(text) {
    this.busy = true;
    this.inserting();
    this.editor.replace(this.at, this.at, text);
    this.accepted(this.at, this.at + text.length);
    this.busy = false;
  }

  #textOf(item) {
    const text = item.text.slice(item.taken);
    const end = this.sentence ? sentenceEnd(item.text, item.done) : -1;
    return end < 0 ? text : item.text.slice(item.taken, Math.max(end, item.taken));
  }

  #add(number = this.sets.length) {
    const items = Array.from({ length: COUNT }, () => ({ text: "", taken: 0, done: false }));
    const set = { items, error: "", controller: new AbortController() };
    this.sets.splice(number, 0, set);
    this.show(number);
    this.#stream(set, this.seed + COUNT * number);
  }

  async #stream(set, seed) {
    const length = Math.min(this.sentence ? SENTENCE_TOKENS : settings.length, contextSize() >> 1);
    const room = contextSize() - length;
    const body = {
      model: chosenModel(),
      prompt: tail(this.editor.text.slice(0, this.at), CHARACTERS * room),
      n: COUNT,
      stream: true,
      max_tokens: length,
      temperature: settings.temperature,
      top_p: settings.top_p,
      seed,
      token_healing: true,
      truncate_prompt_tokens: room,
    };
    const all = [...set.items]; // takeWord may shorten the list of the set
    try {
      for await (const { choices } of postStream("/v1/completions", body, set.controller.signal)) {
        for (const { index, text, finish_reason: reason } of choices) {
          const item = all[index];
          if (item.done) continue;
          item.text += text;
          item.done = Boolean(reason) || (this.sentence && sentenceEnd(item.text, false) >= 0);
        }
        this.#later(set);
        if (all.every(({ done }) => done)) break;
      }
    } catch (error) {
      if (error.name === "AbortError") return;
      set.error = error.message;
      this.announce(error.message);
    }
    for (const item of all) item.done = true;
    if (set === this.set) this.#fill();
    if (this.isOpen) this.root.scrollIntoView({ block: "nearest" }); // it has grown
    if (!this.isOpen || set !== this.set || set.error) return;
    const texts = set.items.map((item, number) => `${number + 1}: ${this.#textOf(item) || "the text ends here"}`);
    this.announce(`${texts.length} continuations. ${texts.join("; ")}`);
  }

  // Shows a set that has grown, once for each frame.
  #later(set) {
    if (set !== this.set || this.painting) return;
    this.painting = requestAnimationFrame(() => {
      this.painting = null;
      if (this.set) this.#fill();
    });
  }

  #build() {
    const options = this.set.items.map((item, number) => option(`continuation-${number}`, () => this.accept(number)));
    for (const one of options) one.append(document.createElement("span"), "");
    this.list.replaceChildren(...options);
    this.#fill();
    activate(this.editor, this.list, this.chosen);
    this.root.scrollIntoView({ block: "nearest" });
  }

  #fill() {
    const { items, error } = this.set;
    // the word that a continuation goes on with is shown before it
    const before = this.editor.text.slice(Math.max(0, this.at - 30), this.at).match(/\S*$/)[0];
    items.forEach((item, number) => {
      const [word, rest] = this.list.children[number].childNodes;
      const text = this.#textOf(item);
      word.textContent = text && !/^\s/.test(text) ? before : "";
      rest.data = visible(text) || (item.done ? "(the text ends here)" : "…");
      this.list.children[number].hidden = Boolean(error && !text);
      this.list.children[number].classList.toggle("growing", !item.done);
    });
    this.list.ariaBusy = String(!items.every(({ done }) => done));
    this.note.hidden = !error;
    this.note.querySelector("span").textContent = error;
    this.root.querySelector("[data-show=set]").textContent = `${this.current + 1} of ${this.sets.length}`;
    this.root.querySelector("[data-do=previous]").disabled = this.current === 0;
    this.root.querySelector("[data-do=next]").disabled = this.current === this.sets.length - 1;
  }
}
