// A conversation as a tree: an edited question or a second answer is a sibling. Data only, independent of the page.

export class Tree {
  constructor(messages) {
    this.messages = new Map(messages.map((message) => [message.id, message]));
  }

  // The answers to a question, or the questions after an answer, oldest first.
  children(parent) {
    return [...this.messages.values()].filter((message) => message.parent === parent);
  }

  siblings(message) {
    return this.children(message.parent);
  }

  // The messages to show: from the root along the selected messages.
  path() {
    const shown = [];
    for (let next = this.selected(null); next; next = this.selected(next.id)) shown.push(next);
    return shown;
  }

  // The messages from the root to this one.
  upTo(message) {
    const earlier = message.parent === null ? [] : this.upTo(this.messages.get(message.parent));
    return [...earlier, message];
  }

  selected(parent) {
    const children = this.children(parent);
    return children.find((message) => message.selected) ?? children.at(-1);
  }

  add(message) {
    this.messages.set(message.id, message);
    if (message.selected) this.select(message);
    return message;
  }

  select(message) {
    for (const sibling of this.siblings(message)) sibling.selected = sibling === message;
  }

  // Replaces a local id with the server's.
  rename(message, id) {
    for (const child of this.children(message.id)) child.parent = id;
    const entries = [...this.messages].map(([key, value]) => [value === message ? id : key, value]);
    message.id = id;
    this.messages = new Map(entries);
  }

  remove(message) {
    this.messages.delete(message.id);
    const left = this.siblings(message).at(-1);
    if (message.selected && left) this.select(left);
  }
}

// How many of the path's first messages the model no longer sees, if `dropped` questions were dropped.
export function unseen(path, dropped) {
  if (!dropped) return 0;
  let questions = 0;
  for (const [place, message] of path.entries()) {
    if (message.role === "user" && questions++ === dropped) return place;
  }
  return 0;
}
