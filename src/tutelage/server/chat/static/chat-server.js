// Talking to the server: JSON there and back, and answers that come in pieces.
import { strings } from "./chat-thread.js";

const csrf = document.body.dataset.csrf;

async function request(method, path, body, signal) {
  const headers = { "x-csrf-token": csrf, "content-type": "application/json", accept: "application/json" };
  const response = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
  if (response.ok) return response;
  if (response.status === 401) {
    location.assign(`/login?next=${encodeURIComponent(location.pathname)}`);
    throw new Error(strings.problems.not_signed_in); // at once: what was typed must be put away before the page goes
  }
  const told = await response.json().catch(() => null);
  throw new Error(told?.error ? inWords(told.error) : `${response.status} ${response.statusText}`);
}

// What the server says of an error, in the page's language where it has words for it.
export function inWords(error) {
  return strings.problems[error.code] ?? error.message;
}

export async function send(method, path, body) {
  const response = await request(method, path, body);
  return response.status === 204 ? null : response.json();
}

// Calls `receive` with each event of an answer: server-sent, one JSON object each.
export async function listen(path, body, signal, receive) {
  const response = await request("POST", path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: ")) receive(JSON.parse(line.slice(6)));
  }
}
