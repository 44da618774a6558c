// Sheets (native dialogs) and short notices (toasts).
import { strings } from "./chat-thread.js";

const toastBox = document.getElementById("toast");
const status = document.getElementById("status");
let toastTimer;

export function sheet(id) {
  return document.getElementById(id);
}

// Opens a sheet. The promise resolves with the sheet's return value when it closes.
export function open(id) {
  const dialog = sheet(id);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
  });
}

export function close(element, value = "") {
  element.closest("dialog").close(value);
}

export function toast(text) {
  clearTimeout(toastTimer);
  toastBox.textContent = text;
  toastBox.hidden = false;
  toastTimer = setTimeout(() => {
    toastBox.hidden = true;
  }, 2500 + 60 * text.length);
}

// Announces a text to screen readers only.
export function announce(text) {
  status.textContent = text;
}

// Asks for confirmation, or for a text if `input` is given. Returns true or the text; false or "" if cancelled.
export async function ask({ title, text = "", yes, input }) {
  sheet("ask-title").textContent = title;
  sheet("ask-text").textContent = text;
  sheet("ask-text").hidden = !text;
  sheet("ask-yes").textContent = yes;
  sheet("ask-field").hidden = input === undefined;
  sheet("ask-input").value = input ?? "";
  const closed = open("ask");
  if (input !== undefined) sheet("ask-input").select();
  return (await closed) === "yes" && (input === undefined || sheet("ask-input").value.trim());
}

export async function chooseReasons(side, reasons, comment) {
  const boxes = [...sheet("reasons").querySelectorAll("input[name=reason]")];
  for (const set of sheet("reasons").querySelectorAll("fieldset")) set.hidden = set.dataset.side !== side;
  for (const box of boxes) box.checked = reasons.includes(box.value);
  sheet("comment").value = comment;
  sheet("reasons-title").textContent = side === "up" ? strings.why_good : strings.why_bad;
  const how = await open("reasons");
  const shown = boxes.filter((box) => box.checked && !box.closest("fieldset").hidden);
  return { how, reasons: shown.map((box) => box.value), comment: sheet("comment").value.trim() };
}
