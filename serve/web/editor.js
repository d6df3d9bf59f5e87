// The editor: plain text in an editable element, by offsets in UTF-16 units. Undo and redo are the browser's own.
//
// The element has text nodes only, in `white-space: pre-wrap`. A last "\n" shows no line, so the browser adds one more
// where the text ends with a line break; it is not part of the text.

const PIECE = 4000; // characters of a text node at first: typing in a short node is faster
const MANY = 50; // lines to insert by a command for each

export const hasHighlights = "highlights" in CSS && "Highlight" in window;

export class Editor {
  constructor(element) {
    this.element = element;
    element.contentEditable = "plaintext-only"; // throws where it is unknown: main.js then takes a textarea
    this.segments = null; // {node, start, length} of each text node, made when needed
    this.canHighlight = hasHighlights;
    element.addEventListener("input", (event) => {
      if (this.inserting) event.stopImmediatePropagation();
      else this.#forget();
    });
    element.addEventListener("paste", (event) => {
      event.preventDefault();
      this.insert(event.clipboardData.getData("text/plain"));
    });
  }

  #forget() {
    this.segments = null;
    this.cached = null;
  }

  #pieces() {
    if (this.segments) return this.segments;
    this.segments = [];
    let start = 0;
    const walker = document.createTreeWalker(this.element, NodeFilter.SHOW_TEXT | NodeFilter.SHOW_ELEMENT);
    while (walker.nextNode()) {
      const node = walker.currentNode;
      const length = node.nodeType === Node.TEXT_NODE ? node.length : node.nodeName === "BR" ? 1 : 0;
      if (length) this.segments.push({ node, start, length });
      start += length;
    }
    return this.segments;
  }

  get text() {
    if (this.cached == null) {
      const all = this.#pieces().map(({ node }) => (node.nodeType === Node.TEXT_NODE ? node.data : "\n"));
      this.cached = all.join("").replace(/\n$/, "");
    }
    return this.cached;
  }

  // Replaces everything, without undo: for the document that was saved.
  set text(text) {
    const parts = [];
    for (let start = 0; start < text.length; ) {
      const line = text.indexOf("\n", start + PIECE);
      const end = line < 0 ? text.length : line + 1;
      parts.push(text.slice(start, end));
      start = end;
    }
    if (text.endsWith("\n")) parts.push("\n");
    this.element.replaceChildren(...parts.map((part) => document.createTextNode(part)));
    this.#forget();
  }

  // The node and the offset in it for an offset of the text.
  #place(offset) {
    const pieces = this.#pieces();
    let low = 0;
    let high = pieces.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (pieces[middle].start + pieces[middle].length < offset) low = middle + 1;
      else high = middle;
    }
    const piece = pieces[low];
    if (!piece) return [this.element, 0];
    if (piece.node.nodeType !== Node.TEXT_NODE) {
      const at = [...piece.node.parentNode.childNodes].indexOf(piece.node);
      return [piece.node.parentNode, at + (offset > piece.start ? 1 : 0)];
    }
    return [piece.node, Math.min(offset - piece.start, piece.length)];
  }

  #offset(node, at) {
    if (node.nodeType !== Node.TEXT_NODE) {
      const before = document.createRange();
      before.setStart(this.element, 0);
      before.setEnd(node, at);
      return Math.min(before.toString().length, this.text.length);
    }
    const piece = this.#pieces().find((one) => one.node === node);
    return piece ? Math.min(piece.start + at, this.text.length) : this.text.length;
  }

  // [start, end] of the selection; the end of the text if it is elsewhere.
  get selection() {
    const selection = getSelection();
    if (!selection.rangeCount || !this.element.contains(selection.anchorNode)) {
      return this.last ?? [this.text.length, this.text.length];
    }
    const range = selection.getRangeAt(0);
    return [
      this.#offset(range.startContainer, range.startOffset),
      this.#offset(range.endContainer, range.endOffset),
    ];
  }

  // Remembers the selection while the focus is elsewhere.
  remember() {
    this.last = null;
    this.last = this.selection;
  }

  select(start, end = start) {
    getSelection().setBaseAndExtent(...this.#place(start), ...this.#place(end));
    this.last = null;
  }

  focus() {
    const [start, end] = this.selection;
    this.element.focus({ preventScroll: true });
    this.select(start, end);
  }

  // Replaces the selection as one step of the native undo, and one "input" event. A line break is a command of its own:
  // in `insertText` it would make a <div>. Setting the selection ends the browser's step of typing.
  insert(text) {
    this.focus();
    this.inserting = true;
    const lines = text.replace(/\r\n?/g, "\n").split("\n");
    if (lines.length > MANY) this.#insertAtOnce(lines.join("\n"));
    else {
      lines.forEach((line, number) => {
        if (number) document.execCommand("insertLineBreak");
        if (line) document.execCommand("insertText", false, line);
      });
    }
    if (!text) document.execCommand("delete");
    this.inserting = false;
    this.element.dispatchEvent(new InputEvent("input", { inputType: "insertText" }));
    this.select(this.selection[1]);
  }

  // Each command lays out the whole text, so that a thousand lines take many seconds. This one takes text of many lines, escaped.
  #insertAtOnce(text) {
    const [start, end] = this.selection;
    const isLast = end === this.#pieces().reduce((total, { length }) => total + length, 0);
    const shown = isLast && text.endsWith("\n") ? `${text}\n` : text;
    const html = shown.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
    this.element.contentEditable = "true"; // "plaintext-only" refuses the command
    document.execCommand("insertHTML", false, html);
    this.element.contentEditable = "plaintext-only";
    this.#forget();
    this.select(start + text.length);
  }

  replace(start, end, text) {
    this.select(start, end);
    this.insert(text);
  }

  range(start, end) {
    const range = document.createRange();
    range.setStart(...this.#place(start));
    range.setEnd(...this.#place(end));
    return range;
  }

  // The rectangle of the line at an offset, in the window.
  rectangle(offset) {
    const [node, at] = this.#place(offset);
    const range = document.createRange();
    range.setStart(node, at);
    const found = [...range.getClientRects()].at(-1);
    if (found?.height) return found;
    // an empty line has no rectangle: take the character before, and go a line down after a line break
    if (offset > 0) {
      const before = [...this.range(offset - 1, offset).getClientRects()].at(-1);
      if (before) {
        const down = this.text[offset - 1] === "\n" ? parseFloat(getComputedStyle(this.element).lineHeight) : 0;
        return new DOMRect(before.left, before.top + down, 0, before.height);
      }
    }
    const box = this.element.getBoundingClientRect();
    return new DOMRect(box.left, box.top, 0, parseFloat(getComputedStyle(this.element).lineHeight));
  }

  // The offset at a point of the window, or -1 outside the text.
  offsetAt(x, y) {
    const found = document.caretPositionFromPoint?.(x, y);
    if (!found || !this.element.contains(found.offsetNode)) return -1;
    return this.#offset(found.offsetNode, found.offset);
  }

  // [start, end] of the text between two heights of the window.
  between(top, bottom) {
    return [this.#offsetBelow(top), this.#offsetBelow(bottom)];
  }

  #offsetBelow(y) {
    let low = 0;
    let high = this.text.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.rectangle(middle).bottom < y) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
