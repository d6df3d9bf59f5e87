// Requests to the server that the page came from: JSON, server-sent events, and the API key.

import { sessionItems } from "./storage.js";

const KEY = "dgpt2-quant.key"; // in sessionStorage: for this tab only
const CUT = "The server stopped in the middle of its answer. Your text is kept.";

export class ApiError extends Error {
  // status 0: the server did not answer, or stopped in the middle of an answer
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

let asking = null;

// The key, asked for once however many requests were refused; null if the dialog was cancelled.
function askForKey(refused) {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("key-dialog");
    const field = dialog.querySelector("input");
    field.value = "";
    const why = refused ? "The server refused this key. Enter another one." : "This server needs a key.";
    dialog.querySelector("label").textContent = why;
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok" ? field.value.trim() : null), {
      once: true,
    });
    dialog.returnValue = "";
    dialog.showModal();
  }).finally(() => (asking = null));
  return asking;
}

async function request(path, body, signal) {
  for (;;) {
    const key = sessionItems.getItem(KEY);
    const headers = { Accept: "application/json" };
    if (body !== undefined) headers["Content-Type"] = "application/json";
    if (key) headers.Authorization = `Bearer ${key}`;
    let response;
    try {
      response = await fetch(path, {
        method: body === undefined ? "GET" : "POST",
        body: body === undefined ? undefined : JSON.stringify(body, wellFormed),
        headers,
        signal,
      });
    } catch (error) {
      throw lost(error);
    }
    if (response.ok) return response;
    const message = await errorText(response);
    if (response.status !== 401) throw new ApiError(message, response.status);
    if (sessionItems.getItem(KEY) === key) {
      sessionItems.removeItem(KEY);
      const given = await askForKey(key);
      if (!given) throw new ApiError("The server needs an API key.", 401);
      // `fetch` sends no other character in a header
      if (!/^[\x20-\x7e]+$/.test(given)) throw new ApiError("An API key must be ASCII text.", 401);
      sessionItems.setItem(KEY, given);
    } // otherwise another request has asked meanwhile
  }
}

// A half of a surrogate pair, which no JSON reader takes, becomes U+FFFD; offsets stay.
function wellFormed(_, value) {
  return value.toWellFormed?.() ?? value;
}

async function errorText(response) {
  try {
    const { error } = await response.json();
    return `The server refused this: ${error.message}.`;
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}

function lost(error) {
  return error.name === "AbortError" ? error : new ApiError("The server does not answer. Your text is kept.");
}

export async function getJson(path, signal) {
  return (await request(path, undefined, signal)).json();
}

export async function postJson(path, body, signal) {
  const response = await request(path, body, signal);
  try {
    return await response.json();
  } catch (error) {
    throw lost(error);
  }
}

// The events of a streamed answer, parsed. Aborting the signal closes the connection, and the server frees its slots.
export async function* postStream(path, body, signal) {
  const response = await request(path, body, signal);
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      let part;
      try {
        part = await reader.read();
      } catch (error) {
        throw error.name === "AbortError" ? error : new ApiError(CUT);
      }
      if (part.done) throw new ApiError(CUT);
      rest += decoder.decode(part.value, { stream: true });
      const events = rest.split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const data = event.startsWith("data: ") ? event.slice(6) : null; // other lines are comments
        if (data === null) continue;
        if (data === "[DONE]") return;
        const value = JSON.parse(data);
        if (value.error) throw new ApiError(`The server reports: ${value.error.message}.`, 500);
        yield value;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
