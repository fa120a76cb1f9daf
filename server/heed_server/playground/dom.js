// Elements are made here and nowhere from markup: whatever a model or a server says is text.

/**
 * An element with attributes, listeners (`on…`) and children.
 *
 * true and false set and leave out an attribute, null and undefined are left out; texts become text nodes.
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) {
      made.addEventListener(name.slice(2), value);
    } else if (value === true) {
      made.setAttribute(name, "");
    } else if (value !== false && value !== null && value !== undefined) {
      made.setAttribute(name, value);
    }
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** The element of this id in the page. */
export function byId(id) {
  return document.getElementById(id);
}

let made = 0;

/** An id that no other element has. */
export function freshId(name) {
  made += 1;
  return `${name}-${made}`;
}
