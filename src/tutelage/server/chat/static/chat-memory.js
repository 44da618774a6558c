// What this browser remembers for its person, and not for the next one who signs in here.

const { person } = JSON.parse(document.body.dataset.page);

export function mine(name) {
  return `${name} ${person}`;
}
