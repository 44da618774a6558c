// System prompt and sampling settings: edited in a sheet, sent with every question, remembered for the next new chat.
import { mine } from "./chat-memory.js";
import { say, strings } from "./chat-thread.js";

const SLIDERS = ["temperature", "min_p", "top_p"];
const NUMBERS = [...SLIDERS, "max_tokens", "seed"];
const field = (name) => document.getElementById(name);

export class Settings {
  constructor(page) {
    this.models = new Map(page.models.map((model) => [model.id, model]));
    this.defaults = page.defaults;
    const remembered = page.conversation ?? JSON.parse(localStorage.getItem(mine("settings")) ?? "{}");
    this.system = remembered.system ?? "";
    this.values = { ...this.defaults, ...remembered.settings };
    const model = field("model");
    if (this.models.has(remembered.model)) model.value = remembered.model;
    model.addEventListener("change", () => this.remember());
    for (const name of ["system", ...NUMBERS]) field(name).addEventListener("input", () => this.read());
    this.show();
  }

  get model() {
    return field("model").value;
  }

  get context() {
    return this.models.get(this.model)?.context ?? Infinity;
  }

  // The settings to send. An answer gets at most half of the model's context, and a quarter by default.
  get sent() {
    const most = Math.max(1, Math.floor(this.context / 2));
    return { ...this.values, max_tokens: Math.min(this.values.max_tokens ?? Math.floor(this.context / 4), most) };
  }

  show() {
    field("system").value = this.system;
    for (const name of NUMBERS) field(name).value = this.values[name] ?? "";
    this.changed();
  }

  changed() {
    for (const name of SLIDERS) {
      document.querySelector(`output[for=${name}]`).value = Number(field(name).value).toFixed(2);
    }
    for (const list of document.querySelectorAll(".starters")) list.hidden = list.dataset.model !== this.model;
    field("max_tokens").max = Math.max(1, Math.floor(this.context / 2));
    field("max_tokens").placeholder = Math.floor(this.context / 4);
    field("max_tokens-hint").textContent = say(strings.context, { context: this.context });
  }

  remember() {
    this.changed();
    const { system, values: settings, model } = this;
    localStorage.setItem(mine("settings"), JSON.stringify({ system, settings, model }));
  }

  read() {
    this.system = field("system").value;
    for (const name of NUMBERS) {
      const value = field(name).valueAsNumber;
      if (Number.isNaN(value)) delete this.values[name];
      else if (field(name).validity.valid) this.values[name] = value;
    }
    this.remember();
  }

  reset() {
    this.system = "";
    this.values = { ...this.defaults };
    this.show();
    this.remember();
  }
}
