// The attention panel: a heat map before, after, and of the difference, and what a head of it looks at.

import {
  difference,
  imageWeights,
  keyWeights,
  largest,
  mean,
  measures,
  readable,
} from "./attention.js";
import { element, freshId } from "./dom.js";
import { heatMap, legend, strip } from "./heatmap.js";
import { overlay } from "./overlay.js";

const SIDES = ["before", "after", "difference"];
const LARGEST_KEYS = 5;

/** Of two answers of `POST /v1/attention`: `before`, without interventions, and `after`. */
export class Maps {
  /**
   * ask(fields): both answers again, with other fields, as `[before, after]`; words: the spans that were
   * measured; pictures: those of the prompt; failed(error): a question was refused.
   */
  constructor(root, { before, after, ask, words, pictures, rows, failed }) {
    Object.assign(this, { before, after, ask, words, pictures, rows, failed });
    this.measures = measures(after, words);
    this.measure = 0;
    this.side = "after";
    this.asked = 0;
    this.marked = null;
    this.about = element("p", { class: "detail" });
    this.table = element("div", {});
    this.keys = element("div", { class: "keys", "aria-live": "polite" });
    root.replaceChildren(this.controls(), this.table, this.about, this.keys);
    root.hidden = false;
    this.show();
  }

  controls() {
    const id = freshId("measure");
    const group = freshId("side");
    const menu = element(
      "select",
      {
        id,
        onchange: () => {
          this.measure = Number(menu.value);
          this.show();
        },
      },
      ...this.measures.map((each, at) => element("option", { value: at }, each.name)),
    );
    return element(
      "div",
      { class: "row" },
      element("div", { class: "field" }, element("label", { for: id }, "Mass on"), menu),
      element(
        "fieldset",
        { class: "choices" },
        element("legend", {}, "Show"),
        ...SIDES.map((side) =>
          element(
            "label",
            {},
            element("input", {
              type: "radio",
              name: group,
              value: side,
              checked: side === this.side,
              onchange: () => {
                this.side = side;
                this.show();
              },
            }),
            ` ${side}`,
          ),
        ),
      ),
    );
  }

  /** [layers][heads] of each side. */
  values() {
    const { of } = this.measures[this.measure];
    const [before, after] = [of(this.before), of(this.after)];
    return { before, after, difference: difference(before, after) };
  }

  show() {
    const values = this.values();
    const signed = this.side === "difference";
    const most = signed ? largest(values.difference) : largest([values.before, values.after]);
    const { layers, heads } = this.after;
    const name = `Mass on ${this.measures[this.measure].name}, ${this.side}, by layer and head`;
    this.table.replaceChildren(
      legend(most, signed),
      element(
        "div",
        { class: "wide" },
        heatMap({
          name,
          layers,
          heads,
          values: values[this.side],
          most,
          signed,
          looked: (layer, head) => this.look(values, layer, head),
          chosen: (layer, head) => this.choose(layer, head),
          marked: this.marked,
        }),
      ),
    );
    this.look(values, ...(this.marked ?? [null, null]));
    this.showKeys();
  }

  /** Say the three numbers of a cell, of a layer's mean, or of all. */
  look(values, layer, head) {
    const { layers, heads } = this.after;
    const number = (grid) => {
      const rows = layer === null ? grid : [grid[layer]];
      return head === null ? mean(rows.flat()) : rows[0][head];
    };
    const where =
      layer === null
        ? "Mean of all layers and heads"
        : head === null
          ? `Layer ${layers[layer]}, mean of its heads`
          : `Layer ${layers[layer]}, head ${heads[head]}`;
    const [before, after] = [number(values.before), number(values.after)];
    this.about.textContent =
      `${where}: before ${before.toFixed(4)}, after ${after.toFixed(4)}, ` +
      `difference ${signedText(after - before)}. Choose a cell, or a layer, to see where it looks.`;
  }

  async choose(layer, head) {
    const { layers, heads } = this.after;
    this.marked = [layer, head];
    this.asked += 1;
    const asked = this.asked;
    const fields = {
      layers: [layers[layer]],
      include: [this.rows === "all" ? "column_mean" : "attention"],
    };
    if (head !== null) {
      fields.heads = [heads[head]];
    }
    try {
      const [before, after] = await this.ask(fields);
      if (asked !== this.asked) {
        return;
      }
      const weights = { before: keyWeights(before), after: keyWeights(after) };
      const where =
        head === null
          ? `layer ${layers[layer]}, mean of its heads`
          : `layer ${layers[layer]}, head ${heads[head]}`;
      this.chosen = {
        where,
        weights: { ...weights, difference: difference(weights.before, weights.after) },
      };
      this.showKeys();
    } catch (error) {
      this.failed(error);
    }
  }

  showKeys() {
    if (!this.chosen) {
      return;
    }
    const { where, weights } = this.chosen;
    const shown = weights[this.side];
    const tokens = this.after.tokens ?? this.after.token_ids.map((id) => `#${id}`);
    const words = this.side === "difference" ? "difference of weights" : `weights ${this.side}`;
    const items = this.items(tokens, shown);
    const told = items
      .toSorted((one, other) => Math.abs(other.value) - Math.abs(one.value))
      .slice(0, LARGEST_KEYS)
      .map(({ text, value, at }) => `“${text.trim()}” at ${at}: ${this.number(value)}`)
      .join("; ");
    this.keys.replaceChildren(
      element("h3", {}, `Where ${where} looks: ${words}`),
      element("p", {}, `Largest: ${told}.`),
      strip(items, `Prompt by token, ${words}`, (value) => this.number(value)),
      element("div", { class: "columns" }, ...this.overlays(shown, words)),
    );
  }

  /** The prompt's tokens, of an image one for all its keys. */
  items(tokens, shown) {
    const items = [];
    const images = this.after.images.map((ranges, image) => ({
      ranges,
      image,
      sum: sum(imageWeights(shown, ranges)),
    }));
    for (let key = 0; key < tokens.length; key += 1) {
      const inside = images.find(({ ranges }) =>
        ranges.some(([start, end]) => start <= key && key < end),
      );
      if (!inside) {
        items.push({ text: readable(tokens[key]), value: shown[key], at: key });
      } else if (!inside.told) {
        inside.told = true;
        items.push({ text: ` [image ${inside.image + 1}] `, value: inside.sum, at: key });
      }
    }
    return items;
  }

  overlays(shown, words) {
    return this.after.images
      .map((ranges, at) => ({ picture: this.pictures[at], weights: imageWeights(shown, ranges) }))
      .filter(({ picture, weights }) => picture && weights.length)
      .map(({ picture, weights }) => overlay(picture, weights, words));
  }

  number(value) {
    return this.side === "difference" ? signedText(value) : value.toFixed(4);
  }
}

function sum(values) {
  return values.reduce((total, each) => total + each, 0);
}

function signedText(value) {
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(4)}`;
}
