// The state of the page in the part of its address behind #, which browsers send to nobody.

const NAMES = {
  model: isText,
  kind: (value) => value === "chat" || value === "text",
  system: isText,
  prompt: isText,
  max_tokens: isNumber,
  temperature: isNumber,
  seed: isNumber,
  interventions: (value) => Array.isArray(value) && value.every(isIntervention),
  words: isText,
  rows: (value) => value === "last" || value === "all",
};

function isText(value) {
  return typeof value === "string";
}

function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

function isIntervention(value) {
  return typeof value === "object" && value !== null && isText(value.method);
}

/** `#` and the state, as JSON. */
export function writeAddress(state) {
  const kept = Object.entries(state).filter(([name]) => Object.hasOwn(NAMES, name));
  return `#${encodeURIComponent(JSON.stringify(Object.fromEntries(kept)))}`;
}

/** What can be used of such a text, which anybody may have written. */
export function readAddress(hash) {
  let written;
  try {
    written = JSON.parse(decodeURIComponent(hash.slice(1)));
  } catch {
    return {};
  }
  if (typeof written !== "object" || written === null) {
    return {};
  }
  const usable = Object.entries(NAMES).filter(
    ([name, fits]) => Object.hasOwn(written, name) && fits(written[name]),
  );
  return Object.fromEntries(usable.map(([name]) => [name, written[name]]));
}
