// Leaving the page: what is lost by it is asked first, and the rest is handed to the next page in this tab.
import { mine } from "./chat-memory.js";
import { ask } from "./chat-sheets.js";
import { strings } from "./chat-thread.js";

const tab = () => mine(`tab ${location.pathname}`);
let discarded = false; // the page is left in order to begin another chat

export function leave(path) {
  discarded = true;
  location.assign(path);
}

// What this tab's last page at this address handed over: before a reload, in another language, before a new sign-in.
export function takeOver() {
  const state = sessionStorage.getItem(tab());
  sessionStorage.removeItem(tab());
  return JSON.parse(state ?? "{}");
}

// All of a chat that is not recorded, and an edit in progress.
function stateOf({ conversation, temporary, settings, tree }) {
  const form = document.querySelector(".edit");
  const editing = form && { id: form.closest(".turn").dataset.id, words: form.querySelector("textarea").value };
  if (conversation) return { editing };
  return { editing, temporary, settings: settings.stored, messages: [...tree.messages.values()] };
}

function handOver(chat) {
  if (discarded) return;
  try {
    sessionStorage.setItem(tab(), JSON.stringify(stateOf(chat)));
  } catch {
    // The chat is larger than the browser's storage.
  }
}

export function watchLeaving(chat) {
  addEventListener("pagehide", () => handOver(chat));
  document.querySelector("form[action='/logout']").addEventListener("submit", () => {
    discarded = true;
  });
  document.addEventListener("click", async (event) => {
    const link = event.target.closest("a[href^='/']");
    if (link?.closest(".languages")) {
      link.pathname = location.pathname; // it changed if the chat was recorded since
      return;
    }
    const elsewhere = event.ctrlKey || event.metaKey || event.shiftKey;
    if (!link || elsewhere || chat.conversation || chat.tree.messages.size === 0) return;
    event.preventDefault();
    if (await ask({ title: strings.leave, text: strings.leave_text, yes: strings.leave_yes })) leave(link.href);
  });
}
