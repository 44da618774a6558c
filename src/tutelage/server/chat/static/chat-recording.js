// Whether chats are kept: policy of the server, consent of the person, and the chip and banner that say so.
import { mine } from "./chat-memory.js";
import { ask, open, sheet, toast } from "./chat-sheets.js";
import { send } from "./chat-server.js";
import { strings } from "./chat-thread.js";

const chip = document.getElementById("recording");
const banner = document.getElementById("banner");
const boxes = { allowed: sheet("allowed"), record: sheet("record"), train: sheet("train") };

export class Keeping {
  constructor(page) {
    this.state = page.recording;
    boxes.record.addEventListener("change", () => this.follow());
    boxes.allowed?.addEventListener("change", () => this.follow());
  }

  get on() {
    return this.state.allowed && this.state.record;
  }

  // `kept`: this very chat; `temporary`: the switch; otherwise what the next chat would be.
  show({ kept, temporary, begun }) {
    const will = kept || (this.on && !temporary && !begun);
    const name = temporary ? "temporary" : will ? "kept" : "private";
    chip.classList.toggle("kept", will);
    chip.replaceChildren(icon(name), strings.keeping[name]);
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

  // The sheet. True when something was decided.
  async decide() {
    for (const [name, box] of Object.entries(boxes)) if (box) box.checked = this.state[name];
    this.follow();
    const how = await open("consent");
    if (how === "forget") return this.forget();
    if (how !== "save") return false;
    if (boxes.allowed && boxes.allowed.checked !== this.state.allowed) {
      this.state = await send("PUT", "/chat/policy", { allowed: boxes.allowed.checked });
    }
    const wish = { record: boxes.record.checked, train: boxes.train.checked };
    if (!this.state.allowed || (this.state.decided && this.same(wish))) return true;
    if (this.state.record && !wish.record && !(await this.sure())) return false;
    this.state = await send("PUT", "/chat/consent", wish);
    toast(strings.saved);
    return true;
  }

  same(wish) {
    return this.state.record === wish.record && this.state.train === wish.train;
  }

  sure() {
    return ask({ title: strings.withdraw, text: strings.withdraw_text, yes: strings.delete });
  }

  async forget() {
    if (!(await ask({ title: strings.delete_all, text: strings.delete_all_text, yes: strings.delete }))) return false;
    await send("DELETE", "/chat/conversations");
    location.assign("/chat");
    return true;
  }
}

function icon(name) {
  const svg = document.querySelector("#temporary svg").cloneNode(true);
  svg.firstElementChild.setAttribute("href", `#icon-${name}`);
  return svg;
}
