// Asks a question and streams its answer into the page. One answer is written at a time.
import { announce, toast } from "./chat-sheets.js";
import { messageOf, listen, send } from "./chat-server.js";
import { grow, itemOf, render, strings, toEnd } from "./chat-thread.js";

const local = () => `local-${crypto.getRandomValues(new Uint32Array(2)).join("")}`;
export const isLocal = (id) => id.startsWith("local-");

export class Answers {
  // `chat` is the page's state: tree, settings, conversation (null unless the chat is recorded), willRecord().
  constructor(chat) {
    this.chat = chat;
    this.writing = null;
    this.abort = null;
  }

  get busy() {
    return this.abort !== null;
  }

  // Adds a question after the message `parent` and streams its answer. Returns false if nothing was received; the
  // caller then restores the typed text.
  async ask(content, parent) {
    const { tree } = this.chat;
    const previous = tree.selected(parent);
    const question = tree.add({ id: local(), parent, role: "user", content, selected: true });
    const answered = await this.answer(question);
    if (answered || !isLocal(question.id)) return true;
    tree.remove(question);
    if (previous) tree.select(previous);
    this.show();
    return false;
  }

  // Streams an answer to a question into the page. Returns false if nothing was received.
  async answer(question) {
    const { tree } = this.chat;
    const previous = tree.selected(question.id);
    const answer = tree.add(this.blank(question, true));
    this.writing = answer;
    this.show();
    toEnd();
    announce(strings.writing);
    const began = await this.stream(question, answer, { compare: false });
    this.writing = null;
    if (!began) {
      tree.remove(answer);
      if (previous) tree.select(previous);
    }
    this.show();
    if (document.activeElement === document.body && matchMedia("(hover: hover)").matches) {
      itemOf(answer)?.querySelector("[data-act=copy]").focus({ preventScroll: true });
    }
    announce(began ? strings.done : "");
    return began;
  }

  // Generates another answer for a blind comparison without showing it. Returns null if there is no whole answer.
  async hidden(question) {
    const answer = this.blank(question, false);
    const began = await this.stream(question, answer, { compare: true });
    return began && answer.content && answer.finish_reason !== "cancelled" ? this.chat.tree.add(answer) : null;
  }

  blank(question, selected) {
    const model = this.chat.settings.model;
    return { id: local(), parent: question.id, role: "assistant", content: "", selected, model };
  }

  stop() {
    this.abort?.abort();
  }

  async stream(question, answer, { compare }) {
    this.abort = new AbortController();
    this.chat.busy(true);
    const started = performance.now();
    let began = false;
    try {
      await listen("/chat/answers", this.body(question, compare), this.abort.signal, (event) => {
        if (event.error && !began) throw new Error(messageOf(event.error));
        began = true;
        this.receive(event, question, answer);
      });
    } catch (error) {
      if (error.name === "AbortError") answer.finish_reason = "cancelled";
      else if (began) answer.error = strings.broken;
      else toast(error.message === "Failed to fetch" ? strings.offline : error.message);
    }
    answer.seconds = (performance.now() - started) / 1000;
    if (began && (answer.content || answer.reasoning) && !answer.html) await this.finish(answer);
    this.abort = null;
    this.chat.busy(false);
    return began;
  }

  // An answer that was stopped has no final HTML yet.
  async finish(answer) {
    try {
      answer.html = (await send("POST", "/chat/markdown", { text: answer.content, reasoning: answer.reasoning })).html;
    } catch {
      return; // the page shows the plain text
    }
  }

  body(question, compare) {
    const { tree, settings, conversation } = this.chat;
    const recorded = conversation !== null;
    return {
      conversation: recorded ? conversation.id : null,
      keep: !recorded && !compare && this.chat.willRecord() && tree.messages.size <= 2, // only from the first question
      question: isLocal(question.id) ? null : question.id,
      parent: recorded ? question.parent : null,
      messages: tree.upTo(question).map(({ role, content, reasoning }) => ({ role, content, reasoning })),
      model: settings.model,
      system: settings.system,
      settings: settings.sent,
      compare,
    };
  }

  receive(event, question, answer) {
    const { tree } = this.chat;
    if (event.start) {
      answer.dropped = event.start.dropped;
      answer.model = event.start.model;
      if (event.start.conversation) {
        this.chat.recorded(event.start.conversation);
        tree.rename(question, event.start.question);
        answer.parent = question.id;
        if (answer === this.writing) tree.rename(answer, event.start.answer);
        else answer.id = event.start.answer;
        this.show();
      } else if (answer.dropped) this.show();
    } else if (event.text !== undefined) {
      answer.content += event.text;
      answer.tail = (answer.tail ?? "") + event.text;
    } else if (event.reasoning) {
      answer.reasoning = (answer.reasoning ?? "") + event.reasoning;
    } else if (event.block) {
      answer.block = event.block;
      answer.tail = event.rest;
    } else if (event.done) {
      Object.assign(answer, event.done);
    } else if (event.error) {
      answer.error = messageOf(event.error);
    }
    if (answer === this.writing) grow(answer);
  }

  show() {
    render(this.chat.tree, this.writing);
  }
}

export async function copy(button, text) {
  if (!(await toClipboard(text))) {
    toast(strings.not_copied);
    return;
  }
  announce(strings.copied);
  const sign = button.querySelector("use");
  sign.setAttribute("href", "#icon-check");
  setTimeout(() => sign.setAttribute("href", "#icon-copy"), 1500);
}

// Browsers offer no clipboard object to pages without TLS from another machine. There, copy a selection instead.
async function toClipboard(text) {
  if (navigator.clipboard) {
    return navigator.clipboard.writeText(text).then(
      () => true,
      () => false,
    );
  }
  const focused = document.activeElement;
  const box = Object.assign(document.createElement("textarea"), { value: text, className: "visually-hidden" });
  document.body.append(box);
  box.select();
  const done = document.execCommand("copy");
  box.remove();
  focused.focus();
  return done;
}
