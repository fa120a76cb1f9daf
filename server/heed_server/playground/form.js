// Controls made from a JSON Schema. A control calls `change` with its new value, undefined for left out.

import { element, freshId } from "./dom.js";
import {
  fits,
  firstValue,
  kindOf,
  plainSchema,
  rangeOf,
  readNumbers,
  variantName,
} from "./schema.js";

/**
 * One named value of an object: label, control, description, and the place of its errors.
 *
 * settings: `{path, value, required, needed, change, suggestions}`; path is the value's in the request;
 * required: it cannot be left out; needed: and that is to be said; suggestions: known values of texts, by
 * name.
 */
export function field(name, raw, settings) {
  const schema = plainSchema(raw);
  const id = freshId("control");
  const control = controlOf(schema, { ...settings, id, name });
  const label = element("label", { for: id }, name, settings.needed ? " (needed)" : null);
  const description = schema.description
    ? element("p", { class: "hint", id: `${id}-hint` }, schema.description)
    : null;
  const node = element(
    "div",
    { class: "field", "data-path": settings.path },
    label,
    control,
    description,
  );
  if (description) {
    node.querySelector(`#${id}`)?.setAttribute("aria-describedby", description.id);
  }
  return node;
}

/** The control of a plain schema; the element with `id` is the one that its label is for. */
function controlOf(schema, settings) {
  const { value } = settings;
  const kind = value === undefined || fits(schema, value) ? kindOf(schema) : "json";
  return CONTROLS[kind](schema, settings);
}

const CONTROLS = {
  variants,
  constant: (schema, { id }) => element("output", { id }, String(schema.const)),
  choice,
  switch: checkbox,
  number,
  text,
  numbers,
  list,
  object,
  json,
};

function left(schema, required) {
  if (required) {
    return null;
  }
  return schema.default === undefined || schema.default === null
    ? "left out"
    : `default: ${JSON.stringify(schema.default)}`;
}

function number(schema, { id, name, value, required, change }) {
  const { least, most, step, slider } = rangeOf(schema);
  const shown = value ?? schema.default;
  const box = element("input", {
    id,
    type: "number",
    min: least,
    max: most,
    step: schema.type === "integer" ? 1 : "any",
    value,
    placeholder: left(schema, required),
    inputmode: least < 0 ? null : "decimal",
  });
  const told = () => change(box.value === "" ? undefined : Number(box.value));
  if (!slider) {
    box.addEventListener("input", told);
    return box;
  }
  const range = element("input", {
    type: "range",
    min: least,
    max: most,
    step,
    "aria-label": `${name}, slider`,
  });
  range.value = shown ?? least;
  box.addEventListener("input", () => {
    range.value = box.value === "" ? (schema.default ?? least) : box.value;
    told();
  });
  range.addEventListener("input", () => {
    box.value = range.value;
    told();
  });
  return element("div", { class: "slider" }, range, box);
}

function text(schema, { id, name, value, required, change, suggestions }) {
  const told = (event) => change(event.target.value === "" ? undefined : event.target.value);
  const shared = { id, placeholder: left(schema, required), oninput: told, spellcheck: "false" };
  if ((schema.maxLength ?? 0) > 1000) {
    const area = element("textarea", { ...shared, rows: 1 });
    area.value = value ?? "";
    return area;
  }
  const known = suggestions?.[name] ?? [];
  const input = element("input", { ...shared, type: "text", value });
  if (!known.length) {
    return input;
  }
  input.setAttribute("list", `${id}-known`);
  const options = known.map((each) => element("option", { value: each }));
  return element("div", {}, input, element("datalist", { id: `${id}-known` }, ...options));
}

function numbers(schema, { id, value, change }) {
  const written = (each) => (each === undefined || each === null ? "" : each.join(", "));
  return element("input", {
    id,
    type: "text",
    value: written(value),
    placeholder: written(schema.default) || "0, 2, 5..7",
    spellcheck: "false",
    oninput: (event) => change(readNumbers(event.target.value)),
  });
}

function checkbox(schema, { id, value, change }) {
  const given = schema.default ?? false;
  return element("input", {
    id,
    type: "checkbox",
    checked: value ?? given,
    onchange: (event) => change(event.target.checked === given ? undefined : event.target.checked),
  });
}

function choice(schema, { id, value, required, change }) {
  const options = schema.enum.filter((each) => required || each !== schema.default);
  const menu = element(
    "select",
    { id, onchange: () => change(options[Number(menu.value)]) },
    required ? null : element("option", { value: -1 }, left(schema)),
    ...options.map((each, at) => element("option", { value: at }, String(each))),
  );
  menu.value = options.indexOf(value);
  return menu;
}

function variants(schema, settings) {
  const { id, value, required, change } = settings;
  const offered = schema.variants
    .map(plainSchema)
    .filter((each) => required || schema.default === undefined || each.const !== schema.default);
  const holder = element("div", { class: "variant" });
  const show = (at, given) => {
    const variant = offered[at];
    holder.replaceChildren();
    if (variant && kindOf(variant) !== "constant") {
      const inner = { ...settings, id: freshId("control"), value: given, required: true };
      const control = controlOf(variant, inner);
      const named = control.id === inner.id ? control : control.querySelector(`#${inner.id}`);
      if (named && !named.hasAttribute("aria-label")) {
        named.setAttribute("aria-label", `${settings.name}, ${variantName(variant)}`);
      }
      holder.append(control);
    }
  };
  const menu = element(
    "select",
    {
      id,
      onchange: () => {
        const variant = offered[Number(menu.value)];
        const first = variant && firstValue(variant);
        show(Number(menu.value), first);
        change(first);
      },
    },
    required ? null : element("option", { value: -1 }, left(schema)),
    ...offered.map((each, at) => element("option", { value: at }, variantName(each))),
  );
  const at = value === undefined ? -1 : offered.findIndex((each) => fits(each, value));
  menu.value = at;
  show(at, value);
  return element("div", {}, menu, holder);
}

function list(schema, { id, name, path, value, change, suggestions }) {
  const items = [...(value ?? [])];
  const rows = element("div", {});
  const show = () => {
    rows.replaceChildren(
      ...items.map((item, at) =>
        element(
          "div",
          { class: "item" },
          field(`${name} ${at + 1}`, schema.items, {
            path: `${path}.${at}`,
            value: item,
            required: true,
            suggestions,
            change: (changed) => {
              items[at] = changed ?? firstValue(schema.items);
              change([...items]);
            },
          }),
          element(
            "button",
            {
              type: "button",
              "aria-label": `Remove ${name} ${at + 1}`,
              onclick: () => {
                items.splice(at, 1);
                show();
                change([...items]);
                add.focus();
              },
            },
            "Remove",
          ),
        ),
      ),
    );
  };
  const add = element(
    "button",
    {
      id,
      type: "button",
      "aria-label": `Add to ${name}`,
      onclick: () => {
        items.push(firstValue(schema.items));
        show();
        change([...items]);
        rows.lastElementChild.querySelector("input, select, textarea")?.focus();
      },
    },
    "Add",
  );
  show();
  return element("div", { class: "list" }, rows, add);
}

function object(schema, { id, name, path, value, change, suggestions }) {
  const held = { ...value };
  return element(
    "div",
    { id, class: "object", role: "group", "aria-label": `${name}, parts` },
    ...fieldsOf(schema, { path, value: held, suggestions, change: () => change({ ...held }) }),
  );
}

/** Fields of an object schema. value: the object, in which they change what they hold; change: called then. */
export function fieldsOf(schema, { path, value, change, suggestions }) {
  return Object.entries(schema.properties).map(([name, each]) =>
    field(name, each, {
      path: `${path}.${name}`,
      value: value[name],
      required: (schema.required ?? []).includes(name),
      needed: (schema.required ?? []).includes(name),
      suggestions,
      change: (changed) => {
        if (changed === undefined) {
          delete value[name];
        } else {
          value[name] = changed;
        }
        change();
      },
    }),
  );
}

function json(schema, { id, value, change }) {
  const area = element("textarea", {
    id,
    rows: 2,
    spellcheck: "false",
    placeholder: "JSON",
    oninput: () => {
      try {
        change(area.value.trim() === "" ? undefined : JSON.parse(area.value));
      } catch {
        change(area.value); // a text that the server refuses, and names
      }
    },
  });
  area.value = value === undefined ? "" : JSON.stringify(value);
  return area;
}
