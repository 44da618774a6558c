// Requests to the server: JSON, and streams of server-sent events.
import { strings } from "./chat-thread.js";

const csrf = document.body.dataset.csrf;

async function request(method, path, body, signal) {
  const headers = { "x-csrf-token": csrf, "content-type": "application/json", accept: "application/json" };
  const response = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
  if (response.ok) return response;
  if (response.status === 401) {
    location.assign(`/login?next=${encodeURIComponent(location.pathname)}`);
    throw new Error(strings.problems.not_signed_in); // the caller saves the typed text before the page is left
  }
  const content = await response.json().catch(() => null);
  throw new Error(content?.error ? messageOf(content.error) : `${response.status} ${response.statusText}`);
}

// The message of an error: translated if its code is known, otherwise as the server sent it.
export function messageOf(error) {
  return strings.problems[error.code] ?? error.message;
}

export async function send(method, path, body) {
  const response = await request(method, path, body);
  return response.status === 204 ? null : response.json();
}

// Calls `receive` with each server-sent event, a JSON object.
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
