// The list of interventions: for each a method, and the form that its schema makes.

import { element, freshId } from "./dom.js";
import { fieldsOf } from "./form.js";
import { firstObject } from "./schema.js";

/** The list in `root`, of the methods in a catalogue. */
export class Interventions {
  /**
   * catalogue: entries of `GET /v1/interventions`; profiles: of `GET /v1/intervention-profiles`;
   * change: called when a value has changed.
   */
  constructor(root, catalogue, profiles, change) {
    this.root = root;
    this.catalogue = catalogue;
    this.profiles = profiles;
    this.change = change;
    this.items = [];
    this.shared = sharedFields(catalogue);
  }

  /** The interventions as a request has them. */
  values() {
    return structuredClone(this.items);
  }

  /** Show these; returns the names of methods among them that the server does not have, which are left out. */
  set(items) {
    const known = (item) => this.catalogue.some((entry) => entry.method === item.method);
    this.items = items.filter(known).map((item) => this.withOwnFields(item));
    this.show();
    return items.filter((item) => !known(item)).map((item) => item.method);
  }

  /** One more, of the first method that can be had here. */
  append() {
    const entry = this.catalogue.find((each) => each.available) ?? this.catalogue[0];
    if (entry) {
      this.items.push(firstObject(entry.parameters));
      this.show();
    }
  }

  /** The same, for whoever asked for it: the focus goes there. */
  add() {
    this.append();
    this.root.lastElementChild?.querySelector("select").focus();
    this.change();
  }

  withOwnFields(item) {
    const { properties } = this.entry(item.method).parameters;
    return Object.fromEntries(
      Object.entries(item).filter(([name]) => Object.hasOwn(properties, name)),
    );
  }

  entry(method) {
    return this.catalogue.find((entry) => entry.method === method);
  }

  show() {
    this.root.replaceChildren(...this.items.map((item, at) => this.card(item, at)));
  }

  card(item, at) {
    const id = freshId("method");
    const body = element("div", {}, ...this.body(item, at));
    // The menu stays while what is under it changes, so that a name can be typed in it.
    const menu = element(
      "select",
      {
        id,
        onchange: () => {
          this.items[at] = firstObject(this.entry(menu.value).parameters);
          body.replaceChildren(...this.body(this.items[at], at));
          this.change();
        },
      },
      ...this.catalogue.map((each) =>
        element(
          "option",
          { value: each.method, disabled: !each.available },
          `${each.title} (${each.method})`,
        ),
      ),
    );
    menu.value = item.method;
    return element(
      "fieldset",
      { class: "card", "data-path": `interventions.${at}` },
      element("legend", {}, `Intervention ${at + 1}`),
      element(
        "div",
        { class: "field", "data-path": `interventions.${at}.method` },
        element("label", { for: id }, "Method"),
        menu,
      ),
      body,
      element(
        "button",
        {
          type: "button",
          "aria-label": `Remove intervention ${at + 1}`,
          onclick: () => this.remove(at),
        },
        "Remove",
      ),
    );
  }

  /** What is said of an item's method, and its fields. */
  body(item, at) {
    const entry = this.entry(item.method);
    const { method, ...properties } = entry.parameters.properties;
    const named = Object.entries(properties);
    const isShared = ([name]) => this.shared.has(name);
    const fields = (chosen) =>
      fieldsOf(
        { ...entry.parameters, properties: Object.fromEntries(chosen) },
        {
          path: `interventions.${at}`,
          value: item,
          change: this.change,
          suggestions: { profile: this.profilesOf(item.method) },
        },
      );
    return [
      element("p", { class: "hint" }, `${entry.summary} ${entry.paper}`),
      entry.available
        ? null
        : element("p", { class: "hint" }, `Not to be had here: ${entry.reason}`),
      entry.privileged
        ? element(
            "p",
            { class: "hint" },
            "Some values need permission from whoever runs the server.",
          )
        : null,
      element("div", { class: "fields" }, ...fields(named.filter((each) => !isShared(each)))),
      element(
        "details",
        {},
        element("summary", {}, "What every method has"),
        ...fields(named.filter(isShared)),
      ),
    ].filter((part) => part !== null);
  }

  remove(at) {
    this.items.splice(at, 1);
    this.show();
    (this.root.querySelector("select") ?? document.getElementById("add")).focus();
    this.change();
  }

  profilesOf(method) {
    return this.profiles.filter((each) => each.method === method).map((each) => each.name);
  }
}

/** Names of the fields that every method has, but for the one that says which it is. */
function sharedFields(catalogue) {
  const names = catalogue.map((entry) => Object.keys(entry.parameters.properties));
  const everywhere = (names[0] ?? []).filter((name) => names.every((each) => each.includes(name)));
  return new Set(catalogue.length > 1 ? everywhere.filter((name) => name !== "method") : []);
}
