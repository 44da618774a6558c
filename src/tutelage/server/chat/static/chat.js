// The chat page: its state, and what each button and key does.
import { Answers, copy } from "./chat-answers.js";
import { Feedback } from "./chat-feedback.js";
import { leave, takeOver, watchLeaving } from "./chat-leaving.js";
import { drawer, remove, rename, showList } from "./chat-list.js";
import { mine } from "./chat-memory.js";
import { Recording } from "./chat-recording.js";
import { send } from "./chat-server.js";
import { Settings } from "./chat-settings.js";
import { close, open, toast } from "./chat-sheets.js";
import { itemOf, part, render, strings, toEnd } from "./chat-thread.js";
import { Tree } from "./chat-tree.js";

const page = JSON.parse(document.body.dataset.page);
const earlier = takeOver(); // this tab's state of the same chat, {} for a new one
const byId = (id) => document.getElementById(id);
const box = byId("message");
const composer = byId("composer");

const chat = {
  tree: new Tree(page.conversation ? page.messages : (earlier.messages ?? [])),
  settings: new Settings(page, page.conversation ?? earlier.settings ?? {}, () => storeSettings()),
  recording: new Recording(page),
  conversation: page.conversation,
  conversations: page.conversations,
  temporary: earlier.temporary ?? false,

  willRecord: () => chat.recording.on && !chat.temporary,

  busy(now) {
    byId("send").hidden = now;
    byId("stop").hidden = !now;
    if (!now) fit();
  },

  // The server has started to record this chat.
  recorded(conversation) {
    if (chat.conversation) return;
    chat.conversation = conversation;
    chat.conversations.unshift(conversation);
    sessionStorage.removeItem(draft());
    history.replaceState(null, "", `/chat/${conversation.id}`);
    remember();
    showTitle(conversation.title);
    showState();
  },

  select(message) {
    chat.tree.select(message);
    if (chat.conversation) send("POST", `/chat/messages/${message.id}/select`).catch(complain);
    render(chat.tree, null);
  },

  async consent() {
    if (await chat.recording.decide().catch(complain)) showState();
    if (!chat.recording.on && chat.conversation) location.assign("/chat"); // the chat was just deleted
  },
};
chat.answers = new Answers(chat);
chat.feedback = new Feedback(chat);
watchLeaving(chat);

function complain(error) {
  toast(error.message);
}

function showTitle(title) {
  document.title = `${title} · Tutelage`;
  byId("title").textContent = title;
}

function showState() {
  const begun = chat.tree.messages.size > 0;
  chat.recording.show({ recorded: chat.conversation !== null, temporary: chat.temporary, begun });
  byId("temporary").setAttribute("aria-pressed", String(chat.temporary));
  byId("temporary").disabled = chat.conversation !== null || begun;
  showList(chat.conversations, chat.conversation?.id);
}

function storeSettings() {
  if (chat.conversation) chat.settings.store(chat.conversation).catch(complain);
}

async function submit() {
  const text = box.value.trim();
  if (!text || chat.answers.busy || !page.models.length) return;
  const parent = chat.tree.path().at(-1)?.id ?? null;
  box.value = "";
  fit();
  remember();
  const answered = chat.answers.ask(text, parent);
  showState();
  if (!(await answered) && !box.value) box.value = text;
  remember();
  showState();
  fit();
  if (matchMedia("(hover: hover)").matches) box.focus({ preventScroll: true });
}

// Text that was typed and not sent is saved per chat, so that a reload or a new sign-in does not lose it.
const draft = () => mine(`draft ${location.pathname}`);

function remember() {
  if (box.value) sessionStorage.setItem(draft(), box.value);
  else sessionStorage.removeItem(draft());
}

// Fits the message box to its text. An empty message cannot be sent.
function fit() {
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
  byId("send").disabled = !box.value.trim() || !page.models.length;
}

function messageAt(element) {
  return chat.tree.messages.get(element.closest(".turn").dataset.id);
}

function edit(message, words = message.content) {
  if (chat.answers.busy) return;
  const item = itemOf(message);
  const form = part("edit");
  const text = form.querySelector("textarea");
  text.value = words;
  for (const child of item.children) child.hidden = true;
  item.append(form);
  text.focus();
  const end = () => {
    form.remove();
    for (const child of item.children) child.hidden = false;
    item.querySelector("[data-act=edit]").focus();
  };
  form.querySelector("[data-act=cancel-edit]").addEventListener("click", end);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const edited = text.value.trim();
    end();
    if (edited && !(await chat.answers.ask(edited, message.parent))) edit(message, edited);
  });
  text.addEventListener("keydown", (event) => {
    if (sends(event)) form.requestSubmit();
    else if (event.key === "Escape") end();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
}

function branch(button, step) {
  const message = messageAt(button);
  const siblings = chat.tree.siblings(message);
  const next = siblings[(siblings.indexOf(message) + step + siblings.length) % siblings.length];
  chat.select(next);
  itemOf(next).querySelector(`[data-act=${button.dataset.act}]`).focus();
}

function download() {
  const system = chat.settings.system ? [{ role: "system", content: chat.settings.system }] : [];
  const messages = [...system, ...chat.tree.path().map(({ role, content }) => ({ role, content }))];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([`${JSON.stringify({ messages, source: "chat" })}\n`]));
  link.download = "chat.jsonl";
  link.click();
  URL.revokeObjectURL(link.href);
}

function theme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  localStorage.setItem("theme", now === "dark" ? "light" : "dark");
  document.documentElement.dataset.theme = localStorage.getItem("theme");
}

const conversationAt = (button) => chat.conversations.find(({ id }) => id === button.closest("li").dataset.id);

const ACTS = {
  new: () => leave("/chat"),
  stop: () => chat.answers.stop(),
  settings: () => open("settings"),
  help: () => open("help"),
  consent: () => chat.consent(),
  defaults: () => {
    chat.settings.reset();
    storeSettings();
  },
  theme,
  download,
  latest: toEnd,
  "open-sidebar": () => drawer(true),
  "close-sidebar": () => drawer(false),
  "close-dialog": (button) => close(button),
  forget: (button) => close(button, "forget"),
  "take-back-thumb": (button) => close(button, "take-back"),
  "no-banner": () => {
    localStorage.setItem(mine("no-banner"), "1");
    showState();
  },
  temporary: () => {
    chat.temporary = !chat.temporary;
    showState();
  },
  starter: (button) => {
    box.value = button.textContent;
    submit();
  },
  copy: (button) => copy(button, messageAt(button).content),
  "copy-code": (button) => copy(button, button.parentElement.querySelector("pre").textContent),
  edit: (button) => edit(messageAt(button)),
  previous: (button) => branch(button, -1),
  following: (button) => branch(button, 1),
  "thumb-up": (button) => chat.feedback.thumb(messageAt(button), 1),
  "thumb-down": (button) => chat.feedback.thumb(messageAt(button), -1),
  regenerate: (button) => chat.answers.answer(chat.tree.messages.get(messageAt(button).parent)),
  compare: (button) => chat.feedback.compare(messageAt(button)),
  better: (button) => chat.feedback.better(messageAt(button)),
  choose: (button) => chat.feedback.choose(button.dataset.winner),
  rename: async (button) => {
    const conversation = conversationAt(button);
    if (!(await rename(conversation))) return;
    if (conversation.id === chat.conversation?.id) showTitle(conversation.title);
    showState();
  },
  delete: async (button) => {
    const conversation = conversationAt(button);
    if (!(await remove(conversation))) return;
    if (conversation.id === chat.conversation?.id) location.assign("/chat");
    chat.conversations = chat.conversations.filter((other) => other !== conversation);
    showState();
    document.querySelector(".new-chat").focus();
  },
};
const WAITING = new Set(["regenerate", "compare", "better", "edit", "previous", "following"]); // not during an answer

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-act]");
  const act = button && ACTS[button.dataset.act];
  if (!act || (WAITING.has(button.dataset.act) && chat.answers.busy)) return;
  Promise.resolve(act(button)).catch(complain);
});

// Whether the key sends the message. Safari reports the Enter that ends an input method's composition as key code 229.
function sends(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
}

box.addEventListener("keydown", (event) => {
  if (!sends(event)) return;
  event.preventDefault();
  submit();
});

document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.keyCode === 229 || document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") {
    if (document.body.classList.contains("sidebar-open")) drawer(false);
    else chat.answers.stop();
  } else if (event.key === "ArrowUp" && (event.ctrlKey || event.metaKey)) {
    const last = chat.tree.path().findLast((message) => message.role === "user");
    if (last) edit(last);
  }
});

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
box.addEventListener("input", () => {
  remember();
  fit();
});
document.querySelector(".new-chat").title = strings.new_chat;
box.value = sessionStorage.getItem(draft()) ?? "";
render(chat.tree, null);
showState();
fit();
toEnd();
if (matchMedia("(hover: hover)").matches) box.focus();
const edited = chat.tree.messages.get(earlier.editing?.id);
if (edited && itemOf(edited)) edit(edited, earlier.editing.words);
