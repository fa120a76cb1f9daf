// A heat map of layers and heads: a table, whose cells the arrow keys walk.

import { largest } from "./attention.js";
import { element } from "./dom.js";

/**
 * The table of `values` [layers][heads], differences where `signed`.
 *
 * layers, heads: their ids; most: the number that has the full colour; name: of the table;
 * looked(layer, head): a cell was pointed at, by places; chosen(layer, head): it was clicked or entered,
 * head null for a whole layer; marked: such a pair that was chosen before, or null.
 */
export function heatMap({ name, layers, heads, values, most, signed, looked, chosen, marked }) {
  const cells = layers.map((layer, row) => [
    cell("th", `Layer ${layer}`, row, -1, { scope: "row" }, String(layer)),
    ...heads.map((head, column) => {
      const value = values[row][column];
      const label = `layer ${layer}, head ${head}: ${value.toFixed(4)}`;
      const made = cell("td", label, row, column, { class: value < 0 ? "less" : "more" });
      made.style.setProperty("--value", Math.min(1, Math.abs(value) / most));
      return made;
    }),
  ]);

  let reached = null; // the one cell that Tab leads to
  let selected = null;

  function reach(made) {
    if (reached) {
      reached.tabIndex = -1;
    }
    reached = made;
    reached.tabIndex = 0;
  }

  function select(row, head) {
    selected?.removeAttribute("aria-selected");
    selected = cells[row][head === null ? 0 : head + 1];
    selected.setAttribute("aria-selected", "true");
  }

  function choose(row, head) {
    select(row, head);
    chosen(row, head);
  }

  function cell(tag, label, row, column, attributes, text = null) {
    const head = column < 0 ? null : column;
    const made = element(
      tag,
      {
        ...attributes,
        tabindex: "-1",
        "aria-label": label,
        onpointerenter: () => looked(row, head),
        onfocus: () => {
          reach(made);
          looked(row, head);
        },
        onclick: () => choose(row, head),
        onkeydown: (event) => walk(event, row, column + 1),
      },
      text,
    );
    return made;
  }

  function walk(event, row, column) {
    if (event.ctrlKey || event.altKey || event.metaKey) {
      return;
    }
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      choose(row, column ? column - 1 : null);
      return;
    }
    const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
    const ends = { Home: [row, 0], End: [row, heads.length] };
    const step = steps[event.key];
    const to = step ? [row + step[0], column + step[1]] : ends[event.key];
    const next = to && cells[to[0]]?.[to[1]];
    if (to) {
      event.preventDefault();
    }
    next?.focus();
  }

  reach(cells[0][1]);
  if (marked) {
    select(...marked);
  }
  return element(
    "table",
    { class: signed ? "map signed" : "map", role: "grid", "aria-label": name },
    element(
      "thead",
      {},
      element(
        "tr",
        {},
        element("th", { scope: "col" }, "layer \\ head"),
        ...heads.map((head) => element("th", { scope: "col" }, String(head))),
      ),
    ),
    element("tbody", {}, ...cells.map((row) => element("tr", {}, ...row))),
  );
}

/** What the colours mean: from the least to the largest number, `least` being 0 or minus `most`. */
export function legend(most, signed) {
  const bar = element("span", { class: signed ? "bar signed" : "bar", "aria-hidden": "true" });
  const least = signed ? (-most).toFixed(3) : "0";
  return element("p", { class: "legend" }, least, bar, `${signed ? "+" : ""}${most.toFixed(3)}`);
}

/** Texts over their numbers' colours. items: `[{text, value, at}]`; name: of it as a whole; written: a number as a text. */
export function strip(items, name, written) {
  const most = largest(items.map((item) => item.value));
  return element(
    "div",
    { class: "strip", role: "img", "aria-label": name },
    ...items.map((item) => {
      const box = element(
        "span",
        { class: item.value < 0 ? "less" : "more", title: `${item.at}: ${written(item.value)}` },
        item.text,
      );
      box.style.setProperty("--value", Math.abs(item.value) / most);
      return box;
    }),
  );
}
