// System prompt and sampling settings of a chat: edited in a sheet, shown under the message box, sent with every question.
// A recorded chat's are stored with it. Another chat's end with it. Only the choice of the model holds for the next chat.
import { mine } from "./chat-memory.js";
import { send } from "./chat-server.js";
import { say, strings } from "./chat-thread.js";

const SLIDERS = ["temperature", "min_p", "top_p"];
const NUMBERS = [...SLIDERS, "max_tokens", "seed"];
const SHOWN_SYSTEM = 60; // characters of the system prompt under the message box
const field = (name) => document.getElementById(name);

export class Settings {
  // `remembered` are those of this chat, {} for a new one. `changed` is called when one was changed.
  constructor(page, remembered, changed) {
    this.models = new Map(page.models.map((model) => [model.id, model]));
    this.defaults = page.defaults;
    this.system = remembered.system ?? "";
    this.values = { ...this.defaults, ...remembered.settings };
    const model = field("model");
    const chosen = remembered.model ?? localStorage.getItem(mine("model"));
    if (this.models.has(chosen)) model.value = chosen;
    model.addEventListener("change", () => {
      localStorage.setItem(mine("model"), this.model);
      this.show();
      changed();
    });
    for (const name of ["system", ...NUMBERS]) {
      field(name).addEventListener("input", () => this.read());
      field(name).addEventListener("change", changed);
    }
    this.show();
  }

  get model() {
    return field("model").value;
  }

  get context() {
    return this.models.get(this.model)?.context ?? Infinity;
  }

  // What the server stores with the chat.
  get stored() {
    return { model: this.model, system: this.system, settings: this.values };
  }

  // The most tokens that an answer may have: half of the model's context.
  get most() {
    return Math.max(1, Math.floor(this.context / 2));
  }

  get usual() {
    return Math.max(1, Math.floor(this.context / 4));
  }

  // The most tokens that the next answer may have.
  get limit() {
    return Math.min(this.values.max_tokens ?? this.usual, this.most);
  }

  // The settings to send. Without a maximum length the server chooses the usual one.
  get sent() {
    return this.values.max_tokens ? { ...this.values, max_tokens: this.limit } : this.values;
  }

  // The settings in force, in words.
  get words() {
    const { temperature, min_p: minP, top_p: topP, seed } = this.values;
    const shown = { temperature: temperature.toFixed(2) };
    if (minP > 0) shown.min_p = minP.toFixed(2);
    if (topP < 1) shown.top_p = topP.toFixed(2);
    if (seed !== undefined) shown.seed = seed;
    shown.limit = this.limit;
    if (this.system) shown.system = cut(this.system);
    return Object.entries(shown).map(([name, value]) => say(strings.in_force[name], { value }));
  }

  show() {
    field("system").value = this.system;
    for (const name of NUMBERS) field(name).value = this.values[name] ?? "";
    this.refresh();
  }

  refresh() {
    for (const name of SLIDERS) {
      document.querySelector(`output[for=${name}]`).value = Number(field(name).value).toFixed(2);
    }
    for (const list of document.querySelectorAll(".starters")) list.hidden = list.dataset.model !== this.model;
    const { context, most, usual } = this;
    field("max_tokens").max = most;
    field("max_tokens").placeholder = usual;
    field("max_tokens-hint").textContent = say(strings.context, { context, most, usual });
    field("in-force").textContent = this.models.size ? this.words.join(" · ") : "";
  }

  read() {
    this.system = field("system").value;
    for (const name of NUMBERS) {
      const value = field(name).valueAsNumber;
      if (Number.isNaN(value)) delete this.values[name];
      else if (field(name).validity.valid) this.values[name] = value;
    }
    this.refresh();
  }

  reset() {
    this.system = "";
    this.values = { ...this.defaults };
    this.show();
  }

  // Stores the settings with a recorded chat.
  store(conversation) {
    return send("PUT", `/chat/conversations/${conversation.id}/settings`, this.stored);
  }
}

function cut(text) {
  const line = text.replace(/\s+/g, " ").trim();
  return line.length > SHOWN_SYSTEM ? `${line.slice(0, SHOWN_SYSTEM)}…` : line;
}
