// Whether chats are recorded: the server's policy, the person's consent, and the button and banner that show them.
import { leave } from "./chat-leaving.js";
import { mine } from "./chat-memory.js";
import { ask, open, sheet, toast } from "./chat-sheets.js";
import { send } from "./chat-server.js";
import { strings } from "./chat-thread.js";

const button = document.getElementById("recording");
const banner = document.getElementById("banner");
const boxes = { allowed: sheet("allowed"), record: sheet("record"), train: sheet("train") };

export class Recording {
  constructor(page) {
    this.state = page.recording;
    boxes.record.addEventListener("change", () => this.follow());
    boxes.allowed?.addEventListener("change", () => this.follow());
  }

  get on() {
    return this.state.allowed && this.state.record;
  }

  // Shows the state of the current chat. `recorded`: it is recorded; `begun`: it already has messages.
  show({ recorded, temporary, begun }) {
    const kept = recorded || (this.on && !temporary && !begun);
    const name = temporary ? "temporary" : kept ? "kept" : "private";
    button.classList.toggle("kept", kept);
    button.replaceChildren(icon(name), strings.recording[name]);
    const undecided = !this.state.decided && !localStorage.getItem(mine("no-banner"));
    banner.hidden = !(undecided && (this.state.allowed || boxes.allowed));
    document.getElementById("banner-text").textContent = this.state.allowed ? strings.banner : strings.banner_admin;
  }

  follow() {
    const allowed = boxes.allowed ? boxes.allowed.checked : this.state.allowed;
    sheet("may-choose").hidden = !allowed;
    sheet("not-allowed").hidden = allowed;
    boxes.train.disabled = !boxes.record.checked;
    if (boxes.train.disabled) boxes.train.checked = false;
  }

  // Opens the sheet. Returns false if it was closed without a choice.
  async decide() {
    for (const [name, box] of Object.entries(boxes)) if (box) box.checked = this.state[name];
    this.follow();
    const how = await open("consent");
    if (how === "forget") return this.forget();
    if (how !== "save") return false;
    if (boxes.allowed && boxes.allowed.checked !== this.state.allowed) {
      this.state = await send("PUT", "/chat/policy", { allowed: boxes.allowed.checked });
    }
    const choice = { record: boxes.record.checked, train: boxes.train.checked };
    if (!this.state.allowed || (this.state.decided && this.same(choice))) return true;
    if (this.state.record && !choice.record && !(await this.confirm())) return false;
    this.state = await send("PUT", "/chat/consent", choice);
    toast(strings.saved);
    return true;
  }

  same(choice) {
    return this.state.record === choice.record && this.state.train === choice.train;
  }

  confirm() {
    return ask({ title: strings.withdraw, text: strings.withdraw_text, yes: strings.delete });
  }

  async forget() {
    if (!(await ask({ title: strings.delete_all, text: strings.delete_all_text, yes: strings.delete }))) return false;
    await send("DELETE", "/chat/conversations");
    leave("/chat");
    return true;
  }
}

function icon(name) {
  const svg = document.querySelector("#temporary svg").cloneNode(true);
  svg.firstElementChild.setAttribute("href", `#icon-${name}`);
  return svg;
}
