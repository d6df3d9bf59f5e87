// Starts the page: the views, and what connects the editor with its lists, the settings and the storage.

import { getJson } from "./api.js";
import { Compare } from "./compare.js";
import { Editor, hasHighlights } from "./editor.js";
import { writingKeys } from "./keys.js";
import { Marks } from "./marks.js";
import { PlainEditor } from "./plain_editor.js";
import { bindSettings, change, setModels, settings } from "./settings.js";
import { Shading } from "./shading.js";
import { download, loadDocument, save } from "./storage.js";
import { Suggestions } from "./suggestions.js";
import { TokenList, fillTable } from "./token_list.js";
import { Types } from "./types.js";

const SAVE_AFTER = 400; // ms without a key
const VIEWS = ["write", "compare", "types"];

const id = (name) => document.getElementById(name);
const editor = makeEditor(id("editor"));
const saved = loadDocument() ?? { text: "", marks: [] };
editor.text = saved.text;
const marks = new Marks(editor, saved.marks);
const scroller = document.querySelector("#write .scroll");
const shading = new Shading({
  editor,
  scroller,
  failed: showProblem,
  painted() {
    showProblem("");
    showTable();
  },
});
const suggestions = new Suggestions({
  editor,
  root: id("suggestions"),
  announce,
  inserting: () => marks.keep(),
  accepted: (start, end) => marks.add(start, end),
});
const tokens = new TokenList({
  editor,
  shading,
  root: id("token"),
  announce,
  failed: showProblem,
  picked(token, text) {
    marks.keep();
    editor.replace(token.start, token.end, text);
    marks.add(token.start, token.start + text.length);
    suggestions.open();
  },
});
const compare = new Compare({ announce, textOfWrite: () => editor.text });
const types = new Types({ announce });

function makeEditor(element) {
  try {
    return new Editor(element);
  } catch {
    return new PlainEditor(element);
  }
}

function announce(text) {
  id("status").textContent = text;
}

// A problem that concerns the whole page, until the next try.
function showProblem(message) {
  id("problem").hidden = !message;
  id("problem").querySelector("span").textContent = message;
}

async function loadModels() {
  showProblem("");
  try {
    setModels((await getJson("/v1/models")).data);
  } catch (error) {
    showProblem(error.message);
    return;
  }
  compare.setModels();
  showView();
  if (settings.shade) setShading(true);
}

function setShading(on) {
  showProblem("");
  change("shade", on);
  id("shade").setAttribute("aria-pressed", String(on));
  id("shade-tools").hidden = !on;
  if (!on) tokens.close();
  return shading.enable(on);
}

async function inspect() {
  suggestions.close();
  if (!shading.enabled) await setShading(true);
  tokens.inspect();
}

function showTable() {
  const dialog = id("table-dialog");
  if (!dialog.open) return;
  fillTable(dialog.querySelector("table"), shading.tokens, (token) => {
    dialog.close();
    tokens.inspect(token.end);
  });
}

// The document: saved when the keys pause, and when the page is left.
let saving = null;

function saveNow() {
  clearTimeout(saving);
  saving = null;
  const done = save("document", { text: editor.text, marks: marks.intervals });
  id("saved").classList.toggle("failed", !done);
  id("saved").textContent = done ? "Saved" : "Not saved: the browser's storage is full or off";
  const count = editor.text.match(/\S+/g)?.length ?? 0;
  id("words").textContent = count === 1 ? "1 word" : `${count.toLocaleString("en")} words`;
  marks.paint();
}

// Takes over what another tab has saved: otherwise the tab that saves last would replace the text of the other.
function takeSaved() {
  const found = loadDocument();
  if (!found || found.text === editor.text) return;
  const [cursor] = editor.selection;
  editor.text = found.text;
  if (document.activeElement === editor.element) editor.select(Math.min(cursor, found.text.length));
  marks.replaceAll(found.marks);
  edited();
}

function edited(event) {
  marks.follow(event?.inputType);
  editor.element.classList.toggle("empty", !editor.text);
  if (!suggestions.busy) suggestions.close();
  if (!suggestions.busy) tokens.close();
  shading.edited();
  clearTimeout(saving);
  saving = setTimeout(saveNow, SAVE_AFTER);
}

function showView() {
  const name = location.hash.slice(1) || "write";
  if (!VIEWS.includes(name)) return; // the link that skips the header
  for (const view of VIEWS) {
    id(view).hidden = view !== name;
    const link = document.querySelector(`nav a[href="#${view}"]`);
    if (view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  id("model").hidden = name !== "write"; // Compare has its own list, and Types shows all
  document.title = `${name[0].toUpperCase()}${name.slice(1)}: dgpt2-quant`;
  suggestions.close();
  tokens.close();
  if (name === "types") types.load();
}

function setSettingsOpen(open) {
  id("settings").hidden = !open;
  id("settings-button").setAttribute("aria-expanded", String(open));
  id(open ? "settings-close" : "settings-button").focus();
}

function replaceDocument(text) {
  location.hash = "write"; // a hidden editor takes no text
  showView();
  marks.keep();
  editor.replace(0, editor.text.length, text);
  marks.replaceAll([]);
  editor.select(0);
  scroller.scrollTop = 0;
}

editor.element.addEventListener("input", edited);
editor.element.addEventListener("blur", () => {
  if (document.hasFocus()) suggestions.close(); // not when another window has the focus
  editor.remember();
});
editor.element.addEventListener("mousedown", () => {
  suggestions.close();
  tokens.close();
});
writingKeys({ editor, suggestions, tokens, announce, inspect });
window.addEventListener("pagehide", () => saving && saveNow());
window.addEventListener("pageshow", ({ persisted }) => persisted && takeSaved());
window.addEventListener("storage", takeSaved);
window.addEventListener("hashchange", showView);

id("continue").addEventListener("click", () => (suggestions.isOpen ? suggestions.more() : suggestions.open()));
id("sentence").addEventListener("click", () => suggestions.open(true));
id("shade").addEventListener("click", () => setShading(!shading.enabled));
id("inspect").addEventListener("click", inspect);
id("show-table").addEventListener("click", () => {
  id("table-dialog").showModal();
  showTable();
});
id("table-dialog").querySelector("button").addEventListener("click", () => id("table-dialog").close());
for (const one of document.querySelectorAll(".bar button")) one.addEventListener("mousedown", (e) => e.preventDefault());

id("settings-button").addEventListener("click", () => setSettingsOpen(id("settings").hidden));
id("settings-close").addEventListener("click", () => setSettingsOpen(false));
id("settings").addEventListener("keydown", (event) => event.key === "Escape" && setSettingsOpen(false));
id("export-txt").addEventListener("click", () => download("text.txt", editor.text, "text/plain"));
id("export-md").addEventListener("click", () => download("text.md", editor.text, "text/markdown"));
id("import").addEventListener("click", () => id("file").click());
id("file").addEventListener("change", async ({ target }) => {
  const [file] = target.files;
  if (file) replaceDocument(await file.text());
  target.value = "";
});
id("clear").addEventListener("click", () => {
  replaceDocument("");
  announce("A new document. Undo brings the old one back.");
});
id("problem").querySelector("button").addEventListener("click", loadModels);

function applySettings(name) {
  document.documentElement.dataset.theme = settings.theme;
  document.documentElement.classList.toggle("no-marks", !settings.marks);
  if (name === "model" && shading.enabled) shading.refresh();
}

bindSettings(applySettings);
applySettings();
editor.element.classList.toggle("empty", !editor.text);
id("shade").hidden = !hasHighlights || !editor.canHighlight;
saveNow();
loadModels();
