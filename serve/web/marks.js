// Which parts of the text the model wrote: intervals [start, end) that follow every edit.

import { difference } from "./text.js";

const KEPT = 100; // states of the document whose marks are known when undo or redo brings them back

export class Marks {
  constructor(editor, intervals) {
    this.editor = editor;
    this.intervals = intervals;
    this.text = editor.text;
    this.states = new Map();
  }

  // After an edit. What is typed inside a marked part is the writer's.
  follow(inputType) {
    const before = this.text;
    this.text = this.editor.text;
    const history = inputType?.startsWith("history");
    const known = history && this.states.get(this.text);
    this.intervals = known || moved(this.intervals, difference(before, this.text));
    if (history) this.paint();
  }

  // Marks what was inserted. Call `keep` before the insertion, so that undo finds the marks of that state.
  add(start, end) {
    this.intervals = [...this.intervals, [start, end]].sort((a, b) => a[0] - b[0]);
    this.keep();
    this.paint();
  }

  keep() {
    this.states.delete(this.text);
    this.states.set(this.text, this.intervals);
    if (this.states.size > KEPT) this.states.delete(this.states.keys().next().value);
  }

  replaceAll(intervals) {
    this.text = this.editor.text;
    this.intervals = intervals;
    this.paint();
  }

  paint() {
    if (!this.editor.canHighlight) return;
    const ranges = this.intervals.map(([start, end]) => this.editor.range(start, end));
    CSS.highlights.set("model", new Highlight(...ranges));
  }
}

function moved(intervals, { start, removed, inserted }) {
  const end = start + removed;
  const found = [];
  for (const [from, to] of intervals) {
    if (to <= start) found.push([from, to]);
    else if (from >= end) found.push([from + inserted - removed, to + inserted - removed]);
    else {
      if (from < start) found.push([from, start]);
      if (to > end) found.push([start + inserted, to + inserted - removed]);
    }
  }
  return found;
}
