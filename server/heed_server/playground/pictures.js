// Pictures for the prompt: read from files into data URIs, which stay in this page until a request takes them.

import { element } from "./dom.js";

/** The pictures chosen so far: `{name, uri, width, height}`. */
export class Pictures {
  /** input: of files; list: where they are shown; change: called when they have changed. */
  constructor(input, list, change) {
    this.chosen = [];
    this.list = list;
    this.change = change;
    input.addEventListener("change", async () => {
      const read = await Promise.allSettled([...input.files].map(readPicture));
      input.value = "";
      this.chosen.push(
        ...read.filter((each) => each.status === "fulfilled").map((each) => each.value),
      );
      this.show(
        read.filter((each) => each.status === "rejected").map((each) => each.reason.message),
      );
      change();
    });
  }

  show(problems = []) {
    this.list.replaceChildren(
      ...this.chosen.map((picture, at) =>
        element(
          "li",
          {},
          element("img", { src: picture.uri, alt: "" }),
          element("span", {}, picture.name),
          element(
            "button",
            {
              type: "button",
              "aria-label": `Remove ${picture.name}`,
              onclick: () => {
                this.chosen.splice(at, 1);
                this.show();
                this.change();
              },
            },
            "Remove",
          ),
        ),
      ),
      ...problems.map((problem) => element("li", { class: "error", role: "alert" }, problem)),
    );
  }
}

async function readPicture(file) {
  const uri = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} cannot be read`));
    reader.readAsDataURL(file);
  });
  const picture = new Image();
  picture.src = uri;
  try {
    await picture.decode();
  } catch {
    throw new Error(`${file.name} is no picture that this browser can show`);
  }
  return { name: file.name, uri, width: picture.naturalWidth, height: picture.naturalHeight };
}
