// One answer: its tokens as they come, as a list that the arrow keys walk, and its reports.

import { element } from "./dom.js";

const REASONS = {
  stop: "ended by itself",
  length: "cut at the most tokens",
  tool_calls: "ended with a tool call",
};

/**
 * One answer, shown as a list box.
 *
 * looked(answer, at): a token was pointed at, or reached with the keyboard.
 */
export class Answer {
  constructor(name, looked) {
    this.name = name;
    this.id = name.toLowerCase();
    this.looked = looked;
    this.said = element("p", { class: "hint" });
    this.box = element("div", {
      class: "tokens",
      role: "listbox",
      tabindex: "0",
      "aria-label": `${name} answer, tokens`,
      onkeydown: (event) => this.walk(event),
      onfocus: () => this.look(Math.max(this.at, 0)),
    });
    this.reports = element("div", { class: "reports" });
    this.node = element(
      "article",
      { class: "answer" },
      element("h3", {}, name),
      this.box,
      this.said,
      this.reports,
    );
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
          id: `${this.id}-token-${at}`,
          role: "option",
          "aria-selected": "false",
          class: token.text ? "token" : "token silent",
          onpointerenter: () => this.look(at),
          onclick: () => this.look(at),
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
    ]
      .filter(Boolean)
      .join(", ");
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
          element(
            "summary",
            {},
            `${report.method}: ${report.status}${report.reason ? ` (${report.reason})` : ""}`,
          ),
          element(
            "pre",
            { tabindex: "0", "aria-label": `Report of ${report.method}` },
            JSON.stringify(report, null, 2),
          ),
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
    const to = {
      ArrowRight: this.at + 1,
      ArrowDown: this.at + 1,
      ArrowLeft: this.at - 1,
      ArrowUp: this.at - 1,
      Home: 0,
      End: last,
    }[event.key];
    if (to === undefined || event.ctrlKey || event.altKey || event.metaKey) {
      return;
    }
    event.preventDefault();
    this.look(Math.min(Math.max(to, 0), last));
    this.nodes[this.at]?.scrollIntoView({ block: "nearest" });
  }
}
