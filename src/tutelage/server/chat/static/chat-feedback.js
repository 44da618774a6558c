// Feedback on answers: thumbs, better answers, and comparisons of two answers. It is stored only for recorded chats.
import { isLocal } from "./chat-answers.js";
import { announce, chooseReasons, close, open, sheet, toast } from "./chat-sheets.js";
import { send } from "./chat-server.js";
import { render, showText, strings } from "./chat-thread.js";

const sides = ["a", "b"];
const reasonsOfPair = () => [...sheet("pair-reasons").querySelectorAll("input")];

export class Feedback {
  constructor(chat) {
    this.chat = chat;
    this.pair = null;
    sheet("pair").addEventListener("keydown", (event) => {
      const choice = ["1", "2", "3", "4"].indexOf(event.key);
      if (choice >= 0 && !sheet("pair-choices").hidden) sheet("pair-choices").children[choice].click();
    });
  }

  // Whether feedback on this message can be stored. If not, says why or offers to change it.
  async allowed(message) {
    if (!isLocal(message.id)) return true;
    if (this.chat.temporary) toast(strings.temporary_feedback);
    else if (this.chat.willRecord()) toast(strings.from_next_chat);
    else await this.chat.consent();
    return false;
  }

  async thumb(message, value) {
    if (!(await this.allowed(message))) return;
    const side = value === 1 ? "up" : "down";
    const same = message.thumb === value;
    await this.put(message, value, same ? message.reasons : [], same ? message.comment : "");
    const chosen = await chooseReasons(side, message.reasons ?? [], message.comment ?? "");
    if (chosen.how === "take-back") await this.put(message, 0, [], "");
    else if (chosen.how === "save") await this.put(message, value, chosen.reasons, chosen.comment);
  }

  async put(message, value, reasons = [], comment = "") {
    await send("PUT", `/chat/messages/${message.id}/thumb`, { value, reasons, comment });
    Object.assign(message, { thumb: value, reasons, comment });
    render(this.chat.tree, null);
    announce(value ? strings.thanks : strings.taken_back);
  }

  async better(message) {
    if (!(await this.allowed(message))) return;
    const text = sheet("better-text");
    text.value = message.content;
    if ((await open("better")) !== "save" || !text.value.trim()) return;
    const written = await send("POST", `/chat/messages/${message.id}/better`, { text: text.value });
    const known = this.chat.tree.messages.get(written.id);
    if (known) this.chat.tree.select(Object.assign(known, written));
    else this.chat.tree.add({ ...written, parent: message.parent, role: "assistant", selected: true });
    render(this.chat.tree, null);
    toast(strings.thanks);
  }

  // Generates a second answer without showing it, then shows both in random order.
  async compare(message) {
    const question = this.chat.tree.messages.get(message.parent);
    for (const name of ["pair-answers", "pair-reasons", "pair-choices", "pair-done"]) sheet(name).hidden = true;
    for (const box of reasonsOfPair()) box.checked = false;
    sheet("pair-wait").hidden = false;
    const closed = open("pair");
    closed.then(() => this.chat.answers.stop());
    const other = await this.chat.answers.hidden(question);
    if (!sheet("pair").open) return;
    if (!other || other.content === message.content) {
      close(sheet("pair-wait"));
      toast(other ? strings.same_second : strings.no_second);
      return;
    }
    await this.shuffle(message, other);
    await closed;
    render(this.chat.tree, null);
  }

  async shuffle(first, second) {
    const { conversation } = this.chat;
    const recorded = conversation !== null && !isLocal(first.id) && !isLocal(second.id);
    const stored = recorded ? await send("POST", "/chat/comparisons", { first: first.id, second: second.id }) : null;
    const swapped = stored ? stored.a === second.id : crypto.getRandomValues(new Uint8Array(1))[0] % 2 === 1;
    const [a, b] = swapped ? [second, first] : [first, second];
    this.pair = { id: stored?.id, second, a, b };
    for (const side of sides) {
      showText(sheet(`pair-${side}`), this.pair[side]);
      sheet(`pair-${side}`).classList.remove("chosen");
      sheet(`pair-${side}-origin`).textContent = "";
    }
    sheet("pair-wait").hidden = true;
    sheet("pair-reasons").hidden = !stored;
    for (const name of ["pair-answers", "pair-choices"]) sheet(name).hidden = false;
    sheet("pair-choices").firstElementChild.focus();
  }

  // A second press while the first choice is being sent is ignored.
  async choose(winner) {
    if (!this.pair) return;
    const pair = this.pair;
    this.pair = null;
    try {
      const reasons = reasonsOfPair().flatMap((box) => (box.checked ? [box.value] : []));
      if (pair.id) await send("POST", `/chat/comparisons/${pair.id}`, { winner, reasons });
    } catch (error) {
      this.pair = pair;
      throw error;
    }
    this.reveal(pair, winner);
  }

  reveal(pair, winner) {
    const better = { a: pair.a, b: pair.b }[winner];
    if (better) this.chat.select(better);
    for (const side of sides) {
      sheet(`pair-${side}`).classList.toggle("chosen", winner === side);
      const origin = pair[side] === pair.second ? strings.new_answer : strings.earlier_answer;
      sheet(`pair-${side}-origin`).textContent = `${origin} · ${pair[side].model ?? strings.your_answer}`;
    }
    for (const name of ["pair-reasons", "pair-choices"]) sheet(name).hidden = true;
    sheet("pair-done").hidden = false;
    sheet("pair-done").querySelector("button").focus();
    announce(strings.chosen);
  }
}
