// The page: its state, and what its buttons do.

import { readAddress, writeAddress } from "./address.js";
import { Answers } from "./answers.js";
import { call, hasKey, Refusal, useKey } from "./api.js";
import { copy, showCommands } from "./commands.js";
import { byId, element } from "./dom.js";
import { Interventions } from "./interventions.js";
import { Maps } from "./maps.js";
import { Pictures } from "./pictures.js";
import { clearPlaces, showAt } from "./places.js";
import { generationOf, inspectionOf, pathOf, withLogprobs, wordsOf } from "./requests.js";
import { generate } from "./stream.js";

const FIRST = {
  kind: "chat",
  system: "",
  prompt:
    "Review: The plot was clever. The print was poor. The sound was superb. Is this review positive or negative?",
  max_tokens: 32,
  temperature: 0,
  words: "",
  rows: "last",
};
const TEXTS = ["model", "system", "prompt", "words", "rows"];
const NUMBERS = ["max_tokens", "temperature", "seed"];
/** Milliseconds without a change. */
const REST = 150;

const answers = new Answers(byId("answers"), byId("token"), byId("answers-said"));
const pictures = new Pictures(byId("pictures"), byId("pictures-list"), changed);
let interventions = null;
let running = null;
let takesImages = false;
let remembering = 0;

function radio() {
  return document.querySelector("input[name=kind]:checked");
}

/** What is written on the page now. */
function state() {
  const texts = TEXTS.map((name) => [name, byId(name).value]);
  const numbers = NUMBERS.map((name) => [name, byId(name).value])
    .filter(([, value]) => value !== "")
    .map(([name, value]) => [name, Number(value)]);
  return {
    ...Object.fromEntries([...texts, ...numbers]),
    kind: radio().value,
    interventions: interventions?.values() ?? [],
  };
}

/** The chosen pictures, where the prompt can have some. */
function shownPictures() {
  return byId("pictures-field").hidden ? [] : pictures.chosen;
}

function changed() {
  byId("system-field").hidden = radio().value !== "chat";
  byId("pictures-field").hidden = radio().value !== "chat" || !takesImages;
  clearTimeout(remembering);
  remembering = setTimeout(remember, REST);
}

/** The address and the commands, which follow when a slider has come to rest: browsers limit new addresses. */
function remember() {
  const now = state();
  history.replaceState(null, "", writeAddress(now));
  showCommands(byId("snippets"), request(now), byId("said"));
}

/** Put a state on the page; what it does not say is as in the beginning. */
function put(written) {
  const next = { ...FIRST, ...written };
  for (const name of [...TEXTS, ...NUMBERS]) {
    const field = byId(name);
    const offered =
      field.tagName !== "SELECT" || [...field.options].some((each) => each.value === next[name]);
    if (name !== "model" || (next.model && offered)) {
      field.value = next[name] ?? "";
    }
  }
  document.querySelector(`input[name=kind][value=${next.kind}]`).checked = true;
  let unknown = [];
  if (written.interventions) {
    unknown = interventions.set(written.interventions);
  } else {
    interventions.set([]);
    interventions.append();
  }
  problem(
    unknown.length
      ? `This server does not have what the link asks for: ${unknown.join(", ")}.`
      : "",
  );
  changed();
}

function problem(text) {
  byId("problem").textContent = text;
}

/** Say what went wrong: at its field, at the top of the page, or by asking for a key. */
function explain(error, root, otherwise) {
  if (error.status === 401) {
    askForKey(hasKey() ? "The server does not take this key." : "");
  } else if (!showAt(root, error.param, error.message)) {
    otherwise(error.message);
  }
}

function askForKey(reason) {
  byId("key").hidden = false;
  byId("key-error").textContent = reason;
  byId("key-text").focus();
}

async function load() {
  problem("");
  try {
    const [catalogue, models, profiles] = await Promise.all(
      ["v1/interventions", "v1/models", "v1/intervention-profiles"].map((path) => call(path)),
    );
    byId("key").hidden = true;
    show(catalogue, models.data, profiles.data);
  } catch (error) {
    byId("served").textContent = "The server has not said what it serves.";
    explain(error, document, problem);
  }
}

function show(catalogue, models, profiles) {
  // A profile as a model's name would edit the baseline too; here profiles are chosen by their field.
  const own = models.filter((model) => model.owned_by !== "heed");
  byId("model").replaceChildren(
    ...own.map((model) => element("option", { value: model.id }, model.id)),
  );
  const { layers, query_heads: heads, images } = catalogue.model;
  byId("served").textContent =
    `${own[0]?.id}: ${layers} layers of ${heads} query heads, ${images ? "text and images" : "text only"}.`;
  takesImages = images;
  interventions = new Interventions(byId("interventions"), catalogue.data, profiles, changed);
  put(readAddress(location.hash));
  // Until here nothing could be written that this would overwrite.
  byId("request").inert = false;
  byId("attention").inert = false;
}

async function run() {
  running?.abort();
  const stopper = new AbortController();
  running = stopper;
  clearPlaces(document);
  problem("");
  answers.clear();
  busy(true);
  const now = state();
  const body = withLogprobs(now, generationOf(now, shownPictures()));
  const sides = [
    [answers.baseline, { ...body, interventions: [] }],
    [answers.edited, body],
  ];
  const path = `v1/${pathOf(now)}`;
  const ended = await Promise.allSettled(
    sides.map(([answer, sent]) => generate(path, sent, stopper.signal, answers.hearing(answer))),
  );
  if (running !== stopper) {
    return;
  }
  running = null;
  busy(false);
  const told = new Set();
  ended.forEach(({ reason }, at) => {
    if (!reason) {
      return;
    }
    const stopped = reason.name === "AbortError";
    sides[at][0].fail(stopped ? "stopped" : reason.message);
    if (!stopped && !told.has(reason.message)) {
      told.add(reason.message);
      explain(
        reason instanceof Refusal ? reason : new Refusal(String(reason), 0),
        byId("request"),
        problem,
      );
    }
  });
  answers.finish(ended.every(({ reason }) => !reason));
}

function busy(yes) {
  byId("stop").disabled = !yes;
  byId("said").textContent = yes ? "Running …" : "";
}

async function measure() {
  clearPlaces(document);
  const failed = (error) =>
    explain(error, document, (message) => {
      byId("attention-error").textContent = message;
    });
  byId("attention-error").textContent = "";
  byId("attention-said").textContent = "Measuring …";
  const now = state();
  const words = wordsOf(now);
  const shown = [...shownPictures()];
  const body = inspectionOf(now, shown);
  const ask = (fields) =>
    Promise.all(
      [[], now.interventions].map((edits) =>
        call("v1/attention", { ...body, interventions: edits, ...fields }),
      ),
    );
  try {
    const spans = words.length ? { spans: words.map((text) => ({ text, occurrence: 1 })) } : {};
    const [before, after] = await ask({ include: ["mass"], ...spans });
    new Maps(byId("maps"), { before, after, ask, words, pictures: shown, rows: now.rows, failed });
  } catch (error) {
    failed(error);
  }
  byId("attention-said").textContent = "";
}

/** The edited request as it would be sent. */
function request(now) {
  const shown = shownPictures();
  return {
    path: pathOf(now),
    body: generationOf(now, shown),
    pictures: shown.map((picture) => picture.name),
    keyed: hasKey(),
  };
}

function onSubmit(id, action) {
  byId(id).addEventListener("submit", (event) => {
    event.preventDefault();
    action();
  });
}

onSubmit("request", run);
onSubmit("attention", measure);
onSubmit("key", () => {
  useKey(byId("key-text").value);
  byId("key-text").value = "";
  load();
});
byId("stop").addEventListener("click", () => running?.abort());
byId("add").addEventListener("click", () => interventions.add());
byId("link").addEventListener("click", () => {
  remember();
  copy("the link", location.href, byId("said"));
});
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    byId("request").requestSubmit();
  }
});
for (const name of [...TEXTS, ...NUMBERS]) {
  byId(name).addEventListener("input", changed);
}
for (const each of document.querySelectorAll("input[name=kind]")) {
  each.addEventListener("change", changed);
}
addEventListener("hashchange", () => interventions !== null && put(readAddress(location.hash)));
load();
