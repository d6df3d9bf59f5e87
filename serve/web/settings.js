// The settings, kept in the browser, and the controls that show them.

import { load, save } from "./storage.js";

const DEFAULTS = {
  model: "",
  temperature: 0.8,
  top_p: 0.95,
  length: 20,
  seed: "",
  tab: true,
  marks: true,
  shade: false,
  theme: "auto",
};

export const settings = { ...DEFAULTS, ...load("settings", {}) };

let models = [];

export function setModels(list) {
  models = list;
  const select = document.getElementById("model");
  select.replaceChildren(...list.map(({ id }) => new Option(id, id)));
  if (!list.some(({ id }) => id === settings.model)) settings.model = list[0].id;
  select.value = settings.model;
}

export function modelList() {
  return models;
}

// The id of the chosen model; undefined, which is the server's first, until the list has arrived.
export function chosenModel() {
  return models.length ? settings.model : undefined;
}

// The tokens that a model takes: prompt and continuation together.
export function contextSize(name = settings.model) {
  return models.find(({ id }) => id === name)?.max_model_len ?? 1024;
}

export function change(name, value) {
  settings[name] = value;
  save("settings", settings);
}

// Connects every control that has `data-setting`; `changed(name)` is called after each change.
export function bindSettings(changed) {
  for (const control of document.querySelectorAll("[data-setting]")) {
    const name = control.dataset.setting;
    const output = document.querySelector(`output[for="${control.id}"]`);
    const show = () => output && (output.value = control.value);
    if (control.type === "checkbox") control.checked = settings[name];
    else control.value = settings[name];
    show();
    control.addEventListener("input", () => {
      show();
      if (control.type === "checkbox") change(name, control.checked);
      else if (control.type === "range") change(name, Number(control.value));
      else if (control.type === "number") change(name, control.validity.valid ? control.value : "");
      else change(name, control.value);
      changed(name);
    });
  }
}
