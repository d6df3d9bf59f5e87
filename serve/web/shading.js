// How likely the model found each token of the text: scored by blocks, for the part in view only, and kept by content.

import { postJson } from "./api.js";
import { chosenModel, contextSize } from "./settings.js";
import { blocksOf, toUtf16 } from "./text.js";

export const LIMITS = [0.5, 0.1, 0.02, 0.002]; // a token below the first is shaded, and so on
const NAMES = LIMITS.map((_, number) => `p${number + 1}`);
const AFTER_EDIT = 350; // ms without a key before the text is scored again
const AFTER_SCROLL = 120;
const KEPT = 60; // scored blocks

export class Shading {
  constructor({ editor, scroller, failed, painted }) {
    Object.assign(this, { editor, scroller, failed, painted });
    this.scored = new Map(); // by model and text
    this.tokens = []; // of the blocks in view, by their place in the text: {start, end, text, logprob, ...}
    this.tops = new Map();
    this.stale = true;
    this.enabled = false;
    scroller.addEventListener("scroll", () => this.enabled && this.#later(AFTER_SCROLL), { passive: true });
    window.addEventListener("resize", () => this.enabled && this.#later(AFTER_SCROLL));
  }

  enable(enabled) {
    this.enabled = enabled;
    if (enabled) return this.refresh();
    clearTimeout(this.timer);
    this.controller?.abort();
    this.tokens = [];
    for (const name of NAMES) CSS.highlights?.delete(name);
    return null;
  }

  // After an edit: the highlights move with the text by themselves, and are renewed when the keys pause.
  edited() {
    this.stale = true;
    this.controller?.abort(); // it scores a text that is no more
    if (this.enabled) this.#later(AFTER_EDIT);
  }

  #later(milliseconds) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.refresh(), milliseconds);
  }

  async refresh() {
    clearTimeout(this.timer);
    this.controller?.abort();
    const controller = (this.controller = new AbortController());
    const { text } = this.editor;
    const size = contextSize(); // characters: about a third of the context, in tokens
    const blocks = blocksOf(text, size);
    const { top, bottom, height } = this.scroller.getBoundingClientRect();
    const seen = this.editor.canHighlight ? this.editor.between(top - height / 2, bottom + height / 2) : [0, size];
    const wanted = blocks.map((block, number) => [block, number]).filter(([[a, b]]) => a <= seen[1] && b >= seen[0]);
    const found = [];
    for (const [[start, end], number] of wanted) {
      const context = text.slice(blocks[Math.max(0, number - 2)][0], start);
      try {
        found.push([start, await this.#score(context, text.slice(start, end), controller.signal)]);
      } catch (error) {
        if (error.name === "AbortError") return;
        this.failed(error.message);
        return;
      }
      if (controller.signal.aborted) return;
      this.#take(found, seen);
    }
    if (!wanted.length) this.#take([], seen);
    this.stale = false;
    this.painted();
  }

  #take(found, seen) {
    this.tokens = found.flatMap(([start, block]) =>
      block.tokens.map((token) => ({ ...token, block, start: token.start + start, end: token.end + start })),
    );
    if (!this.editor.canHighlight) return;
    const ranges = NAMES.map(() => []);
    let last = null; // neighbours of one colour share a range
    for (const { start, end, logprob } of this.tokens) {
      if (end < seen[0] || start > seen[1]) continue;
      const colour = colourOf(logprob);
      if (last && last.colour === colour && last.end === start) last.end = end;
      else {
        last = { colour, start, end };
        if (colour) ranges[colour - 1].push(last);
      }
    }
    const forced = matchMedia("(forced-colors: active)").matches; // all have one colour: show the strong ones only
    NAMES.forEach((name, number) => {
      if (forced && number < 2) return;
      const all = ranges[number].map(({ start, end }) => this.editor.range(start, end));
      CSS.highlights.set(name, new Highlight(...all));
    });
  }

  // The tokens of a block, with offsets in it, and the ids of all tokens with those of its context.
  async #score(context, block, signal) {
    const key = `${chosenModel()}\n${context}\0${block}`;
    const known = this.scored.get(key);
    if (known) return known;
    const prompt = context + block;
    const { choices } = await postJson(
      "/v1/completions",
      {
        model: chosenModel(),
        prompt,
        echo: true,
        max_tokens: 0,
        logprobs: 1,
        return_token_ids: true,
        truncate_prompt_tokens: contextSize(),
      },
      signal,
    );
    const [{ text, logprobs, prompt_token_ids: ids }] = choices; // the text is the prompt's end if that is too long
    const shift = text.length - block.length;
    const offsets = toUtf16(text, [...logprobs.text_offset, [...text].length]);
    const tokens = [];
    let logprob = 0; // a character of several tokens is one, with the product of their probabilities
    let first = null;
    logprobs.tokens.forEach((_, index) => {
      const value = logprobs.token_logprobs[index];
      logprob = value === null || logprob === null ? null : logprob + value;
      first ??= index;
      const [start, end] = [Math.max(offsets[index], shift), offsets[index + 1]];
      if (end === offsets[index]) return;
      if (end > shift) {
        const [likeliest] = ranked(logprobs.top_logprobs[first] ?? {});
        const place = { start: start - shift, end: end - shift };
        tokens.push({ index: first, ...place, text: text.slice(start, end), logprob, likeliest });
      }
      logprob = 0;
      first = null;
    });
    const found = { model: chosenModel(), ids, tokens };
    this.scored.set(key, found);
    if (this.scored.size > KEPT) this.scored.delete(this.scored.keys().next().value);
    return found;
  }

  // The number of the token that contains an offset, or that ends there; -1 without one, or after an edit.
  at(offset) {
    if (this.stale) return -1;
    let low = 0;
    let high = this.tokens.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.tokens[middle].end < offset) low = middle + 1;
      else high = middle;
    }
    return low < this.tokens.length && this.tokens[low].start <= offset ? low : -1;
  }

  // The ten likeliest tokens in place of a token: [[text, logprob], ...]. Empty for the first token of a text.
  async top({ block, index }, signal) {
    if (!index) return [];
    const prompt = block.ids.slice(Math.max(0, index - contextSize() + 1), index);
    const key = `${block.model}\n${prompt}`;
    if (!this.tops.has(key)) {
      const body = { model: block.model, prompt, max_tokens: 1, temperature: 0, logprobs: 10, ignore_eos: true };
      const { choices } = await postJson("/v1/completions", body, signal);
      if (this.tops.size > 500) this.tops.clear();
      this.tops.set(key, ranked(choices[0].logprobs.top_logprobs[0]).slice(0, 10));
    }
    return this.tops.get(key);
  }
}

// The entries of `top_logprobs`, the likeliest first: JavaScript moves keys such as "7" to the front.
function ranked(top) {
  return Object.entries(top).sort(([, one], [, other]) => other - one);
}

// 0: not shaded, to 4: the least likely.
export function colourOf(logprob) {
  return logprob === null ? 0 : LIMITS.filter((limit) => Math.exp(logprob) < limit).length;
}
