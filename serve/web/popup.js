// What the two lists under the text share: their place, and the option that a screen reader is told of.

// Puts a popup under the line of a rectangle, in the column of the text. A narrow one begins at the rectangle. The view
// scrolls to show it all; but under the pointer the text must not move, so the popup goes above where it fits there only.
export function placeUnder(popup, rectangle, byPointer = false) {
  const sheet = popup.parentElement.getBoundingClientRect();
  popup.style.top = `${rectangle.bottom - sheet.top + 6}px`;
  popup.style.left = "";
  popup.hidden = false;
  const start = rectangle.left - sheet.left - 12;
  const most = sheet.width - popup.offsetWidth - popup.offsetLeft;
  if (most > popup.offsetLeft) popup.style.left = `${Math.max(popup.offsetLeft, Math.min(start, most))}px`;
  if (!byPointer) return popup.scrollIntoView({ block: "nearest" });
  const view = popup.closest(".scroll").getBoundingClientRect();
  const above = rectangle.top - popup.offsetHeight - 6;
  if (rectangle.bottom + 6 + popup.offsetHeight > view.bottom && above >= view.top) {
    popup.style.top = `${above - sheet.top}px`;
  }
  return undefined;
}

// Marks an option as the active one of the list that belongs to the editor.
export function activate(editor, list, index) {
  [...list.children].forEach((option, number) => option.setAttribute("aria-selected", String(number === index)));
  const active = list.children[index];
  editor.element.setAttribute("aria-controls", list.id);
  if (!active) return editor.element.removeAttribute("aria-activedescendant");
  editor.element.setAttribute("aria-activedescendant", active.id);
  return active.scrollIntoView({ block: "nearest" });
}

export function release(editor) {
  editor.element.removeAttribute("aria-controls");
  editor.element.removeAttribute("aria-activedescendant");
}

// An option of a list; pressing the mouse on it must not take the focus from the text.
export function option(id, choose) {
  const item = document.createElement("li");
  item.id = id;
  item.role = "option";
  item.setAttribute("aria-selected", "false");
  item.addEventListener("mousedown", (event) => event.preventDefault());
  item.addEventListener("click", choose);
  return item;
}
