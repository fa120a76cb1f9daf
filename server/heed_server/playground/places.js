// Errors beside the field that they are about: the one that an error's `param` names.

import { element, freshId } from "./dom.js";

/**
 * Show `message` at the field of this path, or at the nearest one around it, and go there.
 *
 * Fields say in `data-path` which paths are theirs. Returns whether there is one to be seen.
 */
export function showAt(root, param, message) {
  for (let path = param ?? ""; path; path = path.slice(0, Math.max(path.lastIndexOf("."), 0))) {
    const place = [...root.querySelectorAll("[data-path]")].find((each) =>
      each.dataset.path.split(" ").includes(path),
    );
    if (place && !place.closest("[hidden]")) {
      mark(place, message);
      return true;
    }
  }
  return false;
}

/** Take all of them away again. */
export function clearPlaces(root) {
  for (const note of root.querySelectorAll("[data-path] > .error")) {
    note.remove();
  }
  for (const control of root.querySelectorAll("[aria-invalid]")) {
    control.removeAttribute("aria-invalid");
    control.removeAttribute("aria-errormessage");
  }
}

function mark(place, message) {
  const note = element("p", { class: "error", role: "alert", id: freshId("error") }, message);
  const control = place.querySelector("input:not([type=range]), select, textarea, button");
  place.append(note);
  for (let fold = place.closest("details"); fold; fold = fold.parentElement.closest("details")) {
    fold.open = true;
  }
  if (control) {
    control.setAttribute("aria-invalid", "true");
    control.setAttribute("aria-errormessage", note.id);
    control.focus();
  }
  note.scrollIntoView({ block: "nearest" });
}
