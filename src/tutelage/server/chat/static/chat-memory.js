// Keys for the browser's storage, separate for each person who signs in here.

const { person } = JSON.parse(document.body.dataset.page);

export function mine(name) {
  return `${name} ${person}`;
}
