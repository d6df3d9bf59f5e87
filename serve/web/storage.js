// What the browser keeps between visits: the document, its marks and the settings, in localStorage.

const PREFIX = "dgpt2-quant.";

// sessionStorage, or memory where the browser forbids storage.
export const sessionItems = (() => {
  try {
    return sessionStorage;
  } catch {
    const items = new Map();
    return {
      getItem: (name) => items.get(name) ?? null,
      setItem: (name, value) => items.set(name, value),
      removeItem: (name) => items.delete(name),
    };
  }
})();

export function load(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

// The document of the last visit; null for none, and for what is not one.
export function loadDocument() {
  const found = load("document", null);
  return typeof found?.text === "string" && Array.isArray(found.marks) ? found : null;
}

// Whether it was saved: storage can be full or forbidden.
export function save(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

export function download(name, text, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
