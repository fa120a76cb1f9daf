// Two answers beside each other: their tokens as they come, what differs, and what is known of a token.

import { align, alignSoFar } from "./differences.js";
import { element } from "./dom.js";

const REASONS = {
  stop: "ended by itself",
  length: "cut at the most tokens",
  tool_calls: "ended with a tool call",
};

/** One answer, shown as a list box of tokens that the arrow keys walk. */
class Answer {
  constructor(name, looked) {
    this.name = name;
    this.id = name.toLowerCase();
    this.looked = looked;
    this.said = element("p", { class: "hint" });
    this.box = element("div", {
      class: "tokens", role: "listbox", tabindex: "0", "aria-label": `${name} answer, tokens`,
      onkeydown: (event) => this.walk(event),
      onfocus: () => this.look(Math.max(this.at, 0)),
    });
    this.reports = element("div", { class: "reports" });
    this.node = element("article", { class: "answer" }, element("h3", {}, name), this.box, this.said, this.reports);
    this.clear();
  }

  clear() {
    this.tokens = [];
    this.nodes = [];
    this.partners = [];
    this.at = -1;
    this.reason = null;
    this.box.replaceChildren();
    this.box.removeAttribute("aria-activedescendant");
    this.said.replaceChildren();
    this.said.className = "hint";
    this.reports.replaceChildren();
  }

  add(tokens) {
    for (const token of tokens) {
      const at = this.tokens.length;
      const node = element(
        "span",
        {
          id: `${this.id}-token-${at}`, role: "option", "aria-selected": "false",
          class: token.text ? "token" : "token silent",
          onpointerenter: () => this.look(at), onclick: () => this.look(at),
        },
        token.text || token.name,
      );
      this.tokens.push(token);
      this.nodes.push(node);
      this.partners.push(at);
      this.label(at);
      this.box.append(node);
    }
    this.said.textContent = `${this.tokens.length} tokens …`;
  }

  /** Mark the tokens without a partner. */
  mark(partners) {
    partners.forEach((partner, at) => {
      const changed = (partner === -1) !== (this.partners[at] === -1);
      this.partners[at] = partner;
      if (changed) {
        this.nodes[at].classList.toggle("differs", partner === -1);
        this.label(at);
      }
    });
  }

  /** What is said of a token to whoever does not see it. */
  label(at) {
    const { text, name, logprob } = this.tokens[at];
    const parts = [text || name, logprob === null ? null : `log-probability ${logprob.toFixed(2)}`];
    const differs = this.partners[at] === -1 ? "differs" : null;
    this.nodes[at].setAttribute("aria-label", [...parts, differs].filter(Boolean).join(", "));
  }

  finish() {
    const known = this.tokens.map((token) => token.logprob).filter((each) => each !== null);
    const sum = known.reduce((total, each) => total + each, 0);
    this.said.textContent = [
      `${this.tokens.length} tokens`,
      REASONS[this.reason] ?? this.reason,
      known.length ? `mean log-probability ${(sum / known.length).toFixed(3)}` : null,
    ].filter(Boolean).join(", ");
  }

  fail(message) {
    this.said.className = "error";
    this.said.textContent = message;
  }

  report(reports) {
    this.reports.replaceChildren(
      ...reports.map((report) =>
        element(
          "details",
          {},
          element("summary", {}, `${report.method}: ${report.status}${report.reason ? ` (${report.reason})` : ""}`),
          element("pre", { tabindex: "0", "aria-label": `Report of ${report.method}` }, JSON.stringify(report, null, 2)),
        ),
      ),
    );
  }

  look(at) {
    if (!this.nodes[at]) {
      return;
    }
    this.nodes[this.at]?.setAttribute("aria-selected", "false");
    this.at = at;
    this.nodes[at].setAttribute("aria-selected", "true");
    this.box.setAttribute("aria-activedescendant", this.nodes[at].id);
    this.looked(this, at);
  }

  walk(event) {
    const last = this.nodes.length - 1;
    const to = { ArrowRight: this.at + 1, ArrowDown: this.at + 1, ArrowLeft: this.at - 1, ArrowUp: this.at - 1, Home: 0, End: last }[event.key];
    if (to === undefined || event.ctrlKey || event.altKey || event.metaKey) {
      return;
    }
    event.preventDefault();
    this.look(Math.min(Math.max(to, 0), last));
    this.nodes[this.at]?.scrollIntoView({ block: "nearest" });
  }
}

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
    const names = [this.baseline, this.edited].map((answer) => answer.tokens.map((token) => token.name));
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
      element("p", {}, element("strong", {}, `${answer.name}, token ${at + 1}: `), element("code", {}, JSON.stringify(token.name))),
      element(
        "p",
        {},
        token.logprob === null
          ? "The server gave no log-probability."
          : `log-probability ${token.logprob.toFixed(3)} (${percent(token.logprob)})`,
        partner && partner.logprob !== null ? `; ${other.name.toLowerCase()} ${partner.logprob.toFixed(3)} (${percent(partner.logprob)})` : null,
      ),
      token.others.length
        ? element(
            "table",
            {},
            element("caption", {}, "Likeliest tokens here"),
            ...token.others.map((each) =>
              element("tr", {}, element("th", { scope: "row" }, element("code", {}, JSON.stringify(each.name))), element("td", {}, each.logprob.toFixed(3)), element("td", {}, percent(each.logprob))),
            ),
          )
        : null,
    );
  }
}

function percent(logprob) {
  return `${(100 * Math.exp(logprob)).toFixed(1)} %`;
}
