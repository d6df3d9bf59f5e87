// The keys of the editor. Keys of an input method are left alone while it composes.

import { settings } from "./settings.js";

const MODIFIERS = ["Shift", "Control", "Alt", "Meta"];

export function writingKeys({ editor, suggestions, tokens, announce, inspect }) {
  let leaving = false; // after Escape the next Tab leaves the editor

  // Whether the key was used.
  function used(event) {
    const { key, ctrlKey, shiftKey, altKey, metaKey } = event;
    const plain = !ctrlKey && !shiftKey && !altKey && !metaKey;
    if (plain && tokens.isOpen && tokens.key(event)) return true;
    if (key === "F2" && plain) {
      inspect();
      return true;
    }
    if (ctrlKey && key === " ") {
      if (suggestions.isOpen) suggestions.more();
      else suggestions.open();
      return true;
    }
    if (ctrlKey && key === "Enter") {
      suggestions.open(true);
      return true;
    }
    if (!suggestions.isOpen) {
      if (key === "Tab" && plain && settings.tab && !leaving) {
        suggestions.open();
        return true;
      }
      leaving = false;
      if (key === "Escape" && plain) {
        leaving = true;
        tokens.close();
        if (settings.tab) announce("The next Tab leaves the text.");
      }
      return false;
    }
    if (key === "Tab" && plain) suggestions.more();
    else if (key === "Tab" && shiftKey) suggestions.show(suggestions.current - 1);
    else if (key === "ArrowDown" && plain) suggestions.move(1);
    else if (key === "ArrowUp" && plain) suggestions.move(-1);
    else if (key === "Enter" && plain) suggestions.accept();
    else if (key === "Escape") suggestions.close();
    else if (key === "ArrowRight" && (ctrlKey || altKey)) suggestions.takeWord();
    else {
      suggestions.close(); // the key then does what it always does
      return false;
    }
    return true;
  }

  editor.element.addEventListener("keydown", (event) => {
    if (event.isComposing || event.keyCode === 229 || MODIFIERS.includes(event.key)) return;
    if (used(event)) event.preventDefault();
  });
  editor.element.addEventListener("blur", () => (leaving = false));
}
