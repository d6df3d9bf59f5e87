// Pure functions on text: offsets, words, sentences, blocks, differences.

// UTF-16 offsets of ascending code point offsets: the server counts code points, JavaScript counts UTF-16 units.
// The only place where one becomes the other.
export function toUtf16(text, offsets) {
  let points = 0;
  let units = 0;
  return offsets.map((offset) => {
    while (points < offset && units < text.length) {
      units += text.codePointAt(units) > 0xffff ? 2 : 1;
      points += 1;
    }
    return units;
  });
}

// The length of the first word with the white space before it.
export function firstWord(text) {
  return text.match(/^\s*\S+/)?.[0].length ?? text.length;
}

// The length up to the end of the first sentence, or -1. While a text grows, a closing quote may still follow.
export function sentenceEnd(text, complete) {
  const found = text.match(complete ? /[.!?…]+["'”’)\]]*(?=\s|$)|\S(?=\n)/ : /[.!?…]+["'”’)\]]*(?=\s)|\S(?=\n)/);
  return found ? found.index + found[0].length : -1;
}

// Where two texts differ: `after` is `before` with `removed` characters at `start` replaced by `inserted` others.
export function difference(before, after) {
  const most = Math.min(before.length, after.length);
  let start = 0;
  while (start < most && before.charCodeAt(start) === after.charCodeAt(start)) start += 1;
  let end = 0;
  while (
    end < most - start &&
    before.charCodeAt(before.length - 1 - end) === after.charCodeAt(after.length - 1 - end)
  ) {
    end += 1;
  }
  return { start, removed: before.length - start - end, inserted: after.length - start - end };
}

// The text cut into blocks [start, end) of whole paragraphs, of about `size` characters. A longer paragraph is cut at
// blanks, or anywhere without one. Blocks are made from the beginning, so that an edit changes only those from there on.
export function blocksOf(text, size) {
  const blocks = [];
  let start = 0;
  while (start < text.length) {
    let end = start;
    while (end < text.length) {
      const line = text.indexOf("\n", end);
      const next = line < 0 ? text.length : line + 1;
      if (end > start && next - start > size) break;
      end = next;
      if (end - start >= size) break;
    }
    if (end - start > 1.5 * size) {
      const blank = text.indexOf(" ", start + size);
      if (blank > 0 && blank < end) end = blank;
      else end = start + size + (/^[\udc00-\udfff]/.test(text[start + size]) ? 1 : 0);
    }
    blocks.push([start, end]);
    start = end;
  }
  return blocks;
}

// The end of the text, from a place that moves only now and then: the server reuses a prompt that begins like the last.
export function tail(text, most) {
  if (text.length <= most) return text;
  const step = Math.ceil(most / 2);
  const start = Math.ceil((text.length - most) / step) * step;
  const line = text.indexOf("\n", start);
  const cut = line < 0 || line > start + step / 2 ? text.indexOf(" ", start) : line + 1;
  return text.slice(cut < 0 ? start : cut);
}

// A token's text on one line.
export function visible(text) {
  return text.replaceAll("\n", "↵").replaceAll("\t", "⇥");
}

export function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  if (share >= 99.95) return "100 %";
  if (share >= 10) return `${share.toFixed(0)} %`;
  if (share >= 0.1) return `${share.toFixed(1)} %`;
  return share >= 0.001 ? `${share.toFixed(3)} %` : "under 0.001 %";
}
