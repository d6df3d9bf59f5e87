// The editor of a browser without `plaintext-only`: a textarea with the same methods, and without shading.

export class PlainEditor {
  constructor(element) {
    this.element = document.createElement("textarea");
    for (const { name, value } of element.attributes) {
      if (!["role", "aria-multiline"].includes(name)) this.element.setAttribute(name, value);
    }
    this.element.placeholder = element.dataset.placeholder;
    element.replaceWith(this.element);
    this.canHighlight = false;
  }

  get text() {
    return this.element.value;
  }

  set text(text) {
    this.element.value = text;
  }

  get selection() {
    return [this.element.selectionStart, this.element.selectionEnd];
  }

  remember() {} // a textarea keeps its selection

  select(start, end = start) {
    this.element.setSelectionRange(start, end);
  }

  focus() {
    this.element.focus();
  }

  insert(text) {
    this.focus();
    // where the command is unknown, the text arrives, and the browser's undo ends there
    if (!document.execCommand(text ? "insertText" : "delete", false, text)) {
      this.element.setRangeText(text, ...this.selection, "end");
      this.element.dispatchEvent(new Event("input"));
    }
  }

  replace(start, end, text) {
    this.select(start, end);
    this.insert(text);
  }

  // The place of the cursor is not known: the list is shown below the text.
  rectangle() {
    const box = this.element.getBoundingClientRect();
    return new DOMRect(box.left, box.bottom - 8, 0, 8);
  }
}
