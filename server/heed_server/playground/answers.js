// Two answers beside each other: what differs, and what is known of a token.

import { Answer } from "./answer.js";
import { align, alignSoFar } from "./differences.js";
import { element } from "./dom.js";

/** Both answers in `root`; what is known of a token goes into `detail`, a summary for listeners into `heard`. */
export class Answers {
  constructor(root, detail, heard) {
    this.detail = detail;
    this.heard = heard;
    const looked = (answer, at) => this.tell(answer, at);
    this.baseline = new Answer("Baseline", looked);
    this.edited = new Answer("Edited", looked);
    this.drawing = 0;
    root.replaceChildren(this.baseline.node, this.edited.node);
    this.clear();
  }

  clear() {
    this.baseline.clear();
    this.edited.clear();
    this.over = false;
    this.detail.replaceChildren();
    this.heard.textContent = "";
  }

  /** Callbacks for `generate`. */
  hearing(answer) {
    return {
      tokens: (tokens) => {
        answer.add(tokens);
        this.markSoon();
      },
      finished: (reason) => {
        answer.reason = reason;
        answer.finish();
      },
      reports: (reports) => answer.report(reports),
    };
  }

  markSoon() {
    this.drawing ||= requestAnimationFrame(() => this.mark());
  }

  mark() {
    this.drawing = 0;
    const names = [this.baseline, this.edited].map((answer) =>
      answer.tokens.map((token) => token.name),
    );
    const pairs = (this.over ? align : alignSoFar)(...names);
    this.baseline.mark(pairs.before);
    this.edited.mark(pairs.after);
    return pairs;
  }

  /** Both have ended; `compared`: each has tokens to compare. */
  finish(compared) {
    this.over = compared;
    const pairs = this.mark();
    if (!compared) {
      return;
    }
    const first = pairs.after.findIndex((partner, at) => partner !== at);
    const same = first === -1 && pairs.after.length === pairs.before.length;
    const count = pairs.after.filter((partner) => partner === -1).length;
    this.heard.textContent = same
      ? "Both answers are done, and have the same tokens."
      : `Both answers are done. They part at token ${(first === -1 ? pairs.after.length : first) + 1}; ${count} of the ${pairs.after.length} edited tokens differ. Edited: ${this.edited.tokens.map((token) => token.text).join("")}`;
  }

  tell(answer, at) {
    const token = answer.tokens[at];
    const other = answer === this.edited ? this.baseline : this.edited;
    const partner = this.over ? other.tokens[answer.partners[at]] : undefined;
    this.detail.replaceChildren(
      element(
        "p",
        {},
        element("strong", {}, `${answer.name}, token ${at + 1}: `),
        element("code", {}, JSON.stringify(token.name)),
      ),
      element(
        "p",
        {},
        token.logprob === null
          ? "The server gave no log-probability."
          : `log-probability ${token.logprob.toFixed(3)} (${percent(token.logprob)})`,
        partner && partner.logprob !== null
          ? `; ${other.name.toLowerCase()} ${partner.logprob.toFixed(3)} (${percent(partner.logprob)})`
          : null,
      ),
      token.others.length
        ? element(
            "table",
            {},
            element("caption", {}, "Likeliest tokens here"),
            ...token.others.map((each) =>
              element(
                "tr",
                {},
                element("th", { scope: "row" }, element("code", {}, JSON.stringify(each.name))),
                element("td", {}, each.logprob.toFixed(3)),
                element("td", {}, percent(each.logprob)),
              ),
            ),
          )
        : null,
    );
  }
}

function percent(logprob) {
  return `${(100 * Math.exp(logprob)).toFixed(1)} %`;
}
