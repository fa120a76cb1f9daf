// A picture with the attention on its keys drawn over it.

import { grids, largest } from "./attention.js";
import { element, freshId } from "./dom.js";

const WIDEST = 480;

/**
 * A figure of `picture` (`{name, uri, width, height}`) under `weights`, one a key.
 *
 * words: what the weights are. Which grid the keys make can be chosen where there are several.
 */
export function overlay(picture, weights, words) {
  const found = grids(weights.length, picture.width, picture.height);
  const canvas = element("canvas", { role: "img" });
  const id = freshId("grid");
  const menu = element(
    "select",
    { id, onchange: () => draw(canvas, picture, weights, found[Number(menu.value)], words) },
    ...found.map((grid, at) =>
      element(
        "option",
        { value: at },
        `${grid.columns} × ${grid.rows}${grid.square ? ", middle square" : ""}`,
      ),
    ),
  );
  draw(canvas, picture, weights, found[0], words);
  return element(
    "figure",
    {},
    canvas,
    element(
      "figcaption",
      {},
      picture.name,
      element("label", { for: id }, "Keys as a grid of"),
      menu,
    ),
  );
}

async function draw(canvas, picture, weights, grid, words) {
  const image = new Image();
  image.src = picture.uri;
  const scale = Math.min(1, WIDEST / picture.width);
  // Small pictures are enlarged, so that their cells can be told apart.
  const factor = scale < 1 ? scale : Math.max(1, Math.floor(WIDEST / picture.width / 2));
  canvas.width = Math.round(picture.width * factor);
  canvas.height = Math.round(picture.height * factor);
  const side = Math.min(canvas.width, canvas.height);
  const [left, top, width, height] = grid.square
    ? [(canvas.width - side) / 2, (canvas.height - side) / 2, side, side]
    : [0, 0, canvas.width, canvas.height];
  const at = weights.indexOf(
    weights.reduce((one, other) => (Math.abs(other) > Math.abs(one) ? other : one)),
  );
  canvas.setAttribute(
    "aria-label",
    `${picture.name}, ${words}: ${weights.reduce((sum, each) => sum + each, 0).toFixed(4)} in all, strongest ` +
      `in row ${Math.floor(at / grid.columns) + 1} of ${grid.rows}, column ${(at % grid.columns) + 1} of ${grid.columns}`,
  );
  await image.decode();
  const style = getComputedStyle(document.documentElement);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = scale < 1;
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  context.globalAlpha = 0.45;
  context.fillStyle = "#000";
  context.fillRect(0, 0, canvas.width, canvas.height);
  const most = largest(weights);
  weights.forEach((weight, key) => {
    context.globalAlpha = (0.7 * Math.abs(weight)) / most;
    context.fillStyle = style.getPropertyValue(weight < 0 ? "--over-less" : "--over-more");
    const column = key % grid.columns;
    const row = Math.floor(key / grid.columns);
    context.fillRect(
      left + (column * width) / grid.columns,
      top + (row * height) / grid.rows,
      width / grid.columns,
      height / grid.rows,
    );
  });
}
