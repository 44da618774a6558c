// Renders the conversation: one list item per message of the selected path, made from the page's templates.
import { unseen } from "./chat-tree.js";

export const strings = JSON.parse(document.body.dataset.strings);
const thread = document.getElementById("thread");
const scroller = document.getElementById("scroller");
const latest = document.getElementById("latest");
const NEAR = 96; // this close to the end, in pixels, the page follows the growing answer

export function part(name) {
  return document.getElementById(`part-${name}`).content.firstElementChild.cloneNode(true);
}

export function say(template, values = {}) {
  return template.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

export function render(tree, writing) {
  const path = tree.path();
  const hidden = unseen(path, path.findLast((message) => message.role === "assistant")?.dropped);
  const old = new Map([...thread.children].map((item) => [item.dataset.id, item]));
  const items = path.map((message) => fill(old.get(message.id) ?? made(message), message, tree, writing));
  items.forEach((item, place) => item.classList.toggle("unseen", place < hidden));
  if (hidden) items.splice(hidden, 0, droppedLine(hidden));
  place(items);
  document.getElementById("empty").hidden = path.length > 0;
}

// Items that are already in place are not moved, so they keep the focus.
function place(items) {
  for (const [at, item] of items.entries()) {
    if (thread.children[at] !== item) thread.insertBefore(item, thread.children[at] ?? null);
  }
  while (thread.children.length > items.length) thread.lastElementChild.remove();
}

function made(message) {
  const item = part(message.role);
  item.dataset.id = message.id;
  return item;
}

function fill(item, message, tree, writing) {
  const siblings = tree.siblings(message);
  const branches = item.querySelector(".branches");
  branches.hidden = siblings.length < 2;
  branches.querySelector(".count").textContent = `${siblings.indexOf(message) + 1}/${siblings.length}`;
  item.classList.toggle("writing", message === writing);
  if (message.role === "user") showText(item.querySelector(".text"), message);
  else fillAnswer(item, message, message === writing);
  return item;
}

function fillAnswer(item, message, isWriting) {
  if (!isWriting) showText(item.querySelector(".text"), message);
  for (const [act, value] of [["thumb-up", 1], ["thumb-down", -1]]) {
    const thumb = item.querySelector(`[data-act=${act}]`);
    thumb.setAttribute("aria-pressed", String(message.thumb === value));
    thumb.hidden = !message.model; // no thumbs for the person's own answer
  }
  const note = item.querySelector(".note");
  const ending = message.error ?? endingOf(message);
  note.textContent = isWriting ? "" : (ending ?? "");
  note.classList.toggle("problem", Boolean(message.error));
  note.hidden = isWriting || !ending;
  item.querySelector(".thinking").hidden = !isWriting || !message.reasoning;
  item.querySelector(".author").textContent = message.model ? strings.answer : strings.your_answer;
  item.querySelector(".meta").textContent = meta(message);
}

function endingOf({ finish_reason: reason, tokens, model }) {
  if (model && !reason) return strings.endings.unfinished; // the server was killed, or another tab still streams it
  const ending = strings.endings[reason === "content_filter" && tokens === 0 ? "refused" : reason];
  return ending && say(ending, { tokens });
}

function meta(message) {
  if (!message.model) return strings.your_answer;
  const words = message.tokens === undefined || message.tokens === null ? [] : [say(strings.tokens, message)];
  if (message.seconds) words.push(say(strings.seconds, { seconds: message.seconds.toFixed(1) }));
  return words.join(" · ");
}

// HTML comes only from the server, which sanitises it. Everything else is inserted as text.
export function showText(element, message) {
  element.classList.toggle("plain", !message.html);
  if (message.html) element.innerHTML = message.html;
  else element.textContent = message.content;
  for (const link of element.querySelectorAll("a")) link.target = "_blank"; // the chat stays open
  for (const block of element.querySelectorAll("pre")) frame(block);
  element.lang = languageOf(message.content);
}

// Wraps a code block, so that it can be scrolled by keyboard and copied.
function frame(block) {
  const around = Object.assign(document.createElement("div"), { className: "code" });
  block.tabIndex = 0;
  block.replaceWith(around);
  around.append(block, part("copy-code"));
}

// The language, guessed from the script, so that browsers pick the right glyphs and voice. "" if the script is unclear.
function languageOf(text) {
  if (/[\u3040-\u30ff]/.test(text)) return "ja";
  if (/[\uac00-\ud7a3]/.test(text)) return "ko";
  if (/[\u3400-\u9fff]/.test(text)) return "zh-Hans";
  return /[a-z]/i.test(text) ? "en" : "";
}

function droppedLine(hidden) {
  const line = part("dropped");
  line.textContent = say(strings.dropped, { count: hidden });
  return line;
}

export function itemOf(message) {
  return thread.querySelector(`[data-id="${CSS.escape(message.id)}"]`);
}

// Updates an answer that is being written: finished blocks as HTML, then the text that is still growing.
export function grow(message) {
  const wasAtEnd = atEnd();
  const item = itemOf(message);
  if (!item) return;
  const text = item.querySelector(".text");
  item.querySelector(".thinking").hidden = !message.reasoning;
  item.querySelector(".thinking .plain").textContent = message.reasoning ?? "";
  if (message.block) {
    text.classList.remove("plain");
    text.innerHTML = message.block;
    text.append(Object.assign(document.createElement("span"), { className: "tail", textContent: message.tail }));
    message.block = "";
  } else if (text.querySelector(".tail")) {
    text.querySelector(".tail").textContent = message.tail;
  } else {
    text.classList.add("plain");
    text.textContent = message.content;
  }
  if (wasAtEnd) toEnd();
}

export function atEnd() {
  return scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR;
}

export function toEnd() {
  scroller.scrollTop = scroller.scrollHeight;
}

scroller.addEventListener("scroll", () => {
  latest.hidden = atEnd();
});
