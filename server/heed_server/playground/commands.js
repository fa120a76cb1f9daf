// The request as commands, each with a button that copies it.

import { baseAddress } from "./api.js";
import { element } from "./dom.js";
import { curl, python } from "./snippets.js";

const WRITERS = [
  ["curl", curl],
  ["Python", python],
];

/** In `root`, the commands for a `Request` of `snippets.js`; `said`: where a copy is told of. */
export function showCommands(root, request, said) {
  root.replaceChildren(
    ...WRITERS.map(([name, write]) => {
      const command = write(baseAddress(), request);
      const text = element(
        "pre",
        { tabindex: "0", "aria-label": `The request in ${name}` },
        command,
      );
      const button = element(
        "button",
        {
          type: "button",
          "aria-label": `Copy ${name}`,
          onclick: () => copy(name, command, said, text),
        },
        "Copy",
      );
      return element("div", { class: "snippet" }, element("h3", {}, name), button, text);
    }),
  );
}

/**
 * To the clipboard. Browsers give none to pages that do not come over HTTPS or from this machine: then
 * `shown`, where there is one, is selected to be copied by hand.
 */
export async function copy(name, text, said, shown = null) {
  try {
    await navigator.clipboard.writeText(text);
    said.textContent = `Copied ${name}.`;
  } catch {
    if (shown) {
      getSelection().selectAllChildren(shown);
    }
    said.textContent = shown
      ? "Selected; copy it with your keyboard."
      : "Copy the address of this page.";
  }
}
