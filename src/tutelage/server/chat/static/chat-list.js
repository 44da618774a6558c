// The list of recorded chats. On a narrow screen it is a drawer.
import { ask, toast } from "./chat-sheets.js";
import { send } from "./chat-server.js";
import { part, say, strings } from "./chat-thread.js";

const list = document.getElementById("conversations");
const sidebar = document.getElementById("sidebar");
const main = document.getElementById("main");

export function showList(conversations, current) {
  const focused = document.activeElement;
  const { id: focusedId } = focused.closest(".conversation")?.dataset ?? {};
  list.replaceChildren(
    ...conversations.map(({ id, title }) => {
      const item = part("conversation");
      item.dataset.id = id;
      item.classList.toggle("current", id === current);
      const link = item.querySelector("a");
      Object.assign(link, { href: `/chat/${id}`, textContent: title || strings.untitled, title });
      if (id === current) link.setAttribute("aria-current", "page");
      for (const button of item.querySelectorAll("button")) {
        button.setAttribute("aria-label", `${button.title}: ${title || strings.untitled}`);
      }
      return item;
    }),
  );
  document.getElementById("no-conversations").hidden = conversations.length > 0;
  if (focusedId) list.querySelector(`[data-id="${CSS.escape(focusedId)}"] [data-act=${focused.dataset.act}]`)?.focus();
}

export async function rename(conversation) {
  const title = await ask({ title: strings.rename, yes: strings.save, input: conversation.title });
  if (!title) return false;
  await send("PATCH", `/chat/conversations/${conversation.id}`, { title });
  conversation.title = title;
  return true;
}

export async function remove(conversation) {
  const text = say(strings.delete_one, { title: conversation.title || strings.untitled });
  if (!(await ask({ title: strings.delete, text, yes: strings.delete }))) return false;
  await send("DELETE", `/chat/conversations/${conversation.id}`);
  toast(strings.deleted);
  return true;
}

// Opens or closes the drawer. While it is open, the rest of the page is inert.
export function drawer(opened) {
  document.body.classList.toggle("sidebar-open", opened);
  main.inert = opened;
  (opened ? sidebar : main).querySelector(".only-narrow").focus();
}
