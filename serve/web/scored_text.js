// A text scored by two models, for Compare: shaded by how far each token's log-probability moved, with both top lists.

import { percent, toUtf16, visible } from "./text.js";

const STEPS = [0.05, 0.25, 1]; // of the difference in nats: three shades each way

let made = 0; // for ids that are unique in the page

function element(tag, text, className) {
  const found = document.createElement(tag);
  if (text !== undefined) found.textContent = text;
  if (className) found.className = className;
  return found;
}

export function shadeOf(difference) {
  const shade = STEPS.filter((step) => Math.abs(difference) >= step).length;
  return shade ? `${difference < 0 ? "less" : "more"}${shade}` : "same";
}

function signed(value, digits = 4) {
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;
}

// A card for `other` against `reference`: entries of `models` in the answer of /v1/compare.
// `text` is the scored text, whose characters the tokens' offsets count.
export function scoredText(text, tokens, reference, other) {
  const card = element("section", undefined, "card");
  const title = element("h3", `${other.id} against ${reference.id}`);
  title.id = `scored-${(made += 1)}`;
  card.setAttribute("aria-labelledby", title.id);
  const list = element("div", undefined, "scored");
  list.role = "listbox";
  list.tabIndex = 0;
  list.setAttribute("aria-labelledby", title.id);
  const details = element("div", undefined, "details");
  const offsets = [...toUtf16(text, tokens.map(({ offset }) => offset)), text.length];
  let current = -1;

  function show(index) {
    const before = list.children[current];
    if (before) before.setAttribute("aria-selected", "false");
    current = index;
    const item = list.children[index];
    item.setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", item.id);
    details.replaceChildren(...detailsOf(tokens[index], reference, other, index));
  }

  list.append(
    ...tokens.map((token, index) => {
      // of a character with several tokens, the last one shows it
      const shown = text.slice(offsets[index], offsets[index + 1]) || "·";
      const item = element("span", shown.replaceAll("\n", "↵\n"), "tok");
      item.role = "option";
      item.id = `${title.id}-${index}`;
      item.setAttribute("aria-selected", "false");
      const moved = movement(reference, other, index);
      if (moved !== null) {
        item.classList.add(shadeOf(moved));
        item.setAttribute("aria-label", `${visible(token.text)} ${signed(moved, 2)}`);
      }
      return item;
    }),
  );
  list.addEventListener("pointerover", ({ target }) => {
    if (target !== list) show([...list.children].indexOf(target));
  });
  list.addEventListener("focus", () => current < 0 && show(Math.min(1, tokens.length - 1)));
  list.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10, Home: -1e9, End: 1e9 }[event.key];
    if (!step) return;
    event.preventDefault();
    show(Math.min(tokens.length - 1, Math.max(0, current + step)));
    list.children[current].scrollIntoView({ block: "nearest" });
  });
  const hint = element("p", "Point at a token, or use the arrow keys, to see the likeliest tokens of both models.", "hint");
  details.append(hint);
  card.append(title, legend(), list, details, tableOf(tokens, reference, other));
  return card;
}

// How much likelier `other` finds a token than the reference does, in nats; null for the first one.
function movement(reference, other, index) {
  const value = reference.logprobs[index];
  return value === null || value === undefined ? null : other.logprobs[index] - value;
}

function legend() {
  const box = element("p", undefined, "legend");
  const steps = ["less3", "less2", "less1", "same", "more1", "more2", "more3"];
  const texts = ["less likely: −1 nat", "−0.25", "−0.05", "same", "+0.05", "+0.25", "+1 nat: more likely"];
  box.append(...steps.map((step, index) => element("span", texts[index], step)));
  return box;
}

function detailsOf(token, reference, other, index) {
  const moved = movement(reference, other, index);
  const name = `“${visible(token.text)}”`;
  if (moved === null) return [element("p", `${name} is the first token: nothing comes before it.`)];
  const head = element("p");
  head.append(
    element("strong", name),
    `: log-probability moved by ${signed(moved)} nats, KL divergence ${other.kld[index].toFixed(5)}`,
  );
  const columns = element("div", undefined, "columns");
  for (const model of [reference, other]) {
    const column = element("div");
    column.append(
      element("h4", `${model.id}: ${percent(model.logprobs[index])} (${signed(model.logprobs[index])})`),
    );
    const list = element("ol");
    for (const { id, text, logprob } of model.top[index]) {
      const item = element("li", `${visible(text)} `, id === token.id ? "here" : "");
      item.append(element("span", percent(logprob)));
      list.append(item);
    }
    column.append(list);
    columns.append(column);
  }
  return [head, columns];
}

function tableOf(tokens, reference, other) {
  const box = element("details");
  box.append(element("summary", "As a table"));
  box.addEventListener("toggle", () => {
    if (!box.open || box.children.length > 1) return;
    const columns = ["Token", reference.id, other.id, "Difference", "KL divergence"];
    const rows = tokens.map(({ text }, index) => {
      const moved = movement(reference, other, index);
      if (moved === null) return [visible(text), "", "", "", ""];
      const values = [reference, other].map(({ logprobs }) => signed(logprobs[index]));
      return [visible(text), ...values, signed(moved), other.kld[index].toFixed(5)];
    });
    box.append(scrolling(table(columns, rows), `Log-probabilities of ${other.id} against ${reference.id}`));
  });
  return box;
}

export function table(columns, rows) {
  const found = element("table");
  const head = found.createTHead().insertRow();
  for (const title of columns) {
    const cell = element("th", title);
    cell.scope = "col";
    head.append(cell);
  }
  const body = found.createTBody();
  for (const [name, ...values] of rows) {
    const row = body.insertRow();
    const first = element("th", name);
    first.scope = "row";
    row.append(first, ...values.map((value) => element("td", value)));
  }
  return found;
}

export function scrolling(content, label) {
  const box = element("div", undefined, "table-box");
  box.tabIndex = 0;
  box.role = "region";
  box.ariaLabel = label;
  box.append(content);
  return box;
}
