// Server-sent events of a streamed answer, and the tokens in them.

import { refusalOf, send } from "./api.js";

/** Each event's JSON, until `[DONE]` or the end. chunks: an async iterable of texts, cut anywhere. */
export async function* eventsOf(chunks) {
  let rest = "";
  for await (const chunk of chunks) {
    rest += chunk.replaceAll("\r", "");
    const events = rest.split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event
        .split("\n")
        .filter((line) => line.startsWith("data:"))
        .map((line) => line.slice(5).trimStart())
        .join("\n");
      if (data === "[DONE]") {
        return;
      }
      if (data) {
        yield JSON.parse(data);
      }
    }
  }
}

async function* textsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let read = await reader.read(); !read.done; read = await reader.read()) {
      yield read.value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function byLogprob(one, other) {
  return other.logprob - one.logprob;
}

/**
 * Tokens of a chunk's choice, of a chat or a completion: `{name, text, logprob, others}`.
 *
 * name: the token by itself; text: what it added to the answer, which is empty for an end token and for
 * a part of a character; logprob: null where the server gave none; others: `{name, logprob}`, best first.
 */
export function tokensOf(choice) {
  const said = choice.delta?.content ?? choice.text ?? "";
  const listed = choice.logprobs;
  let tokens = [];
  if (listed?.content) {
    tokens = listed.content.map(({ token, logprob, top_logprobs: top }) => ({
      name: token,
      logprob,
      others: (top ?? []).map((other) => ({ name: other.token, logprob: other.logprob })),
    }));
  } else if (listed?.tokens) {
    tokens = listed.tokens.map((name, at) => ({
      name,
      logprob: listed.token_logprobs[at],
      others: Object.entries(listed.top_logprobs?.[at] ?? {}).map(([other, logprob]) => ({
        name: other,
        logprob,
      })),
    }));
  } else if (said) {
    tokens = [{ name: said, logprob: null, others: [] }];
  }
  for (const token of tokens) {
    // A tokenizer may leave the space before a word out of a token by itself; the answer has it.
    token.text = tokens.length === 1 ? said : token.name;
    token.others.sort(byLogprob);
  }
  return tokens;
}

/**
 * Send `body` to be streamed, and tell `heard` of it: `tokens([…])`, `finished(reason)`, `reports([…])`.
 *
 * Throws a Refusal, also for an error in the stream.
 */
export async function generate(path, body, signal, heard) {
  const response = await send(path, { ...body, stream: true }, signal);
  for await (const event of eventsOf(textsOf(response))) {
    if (event.error) {
      throw refusalOf(event, response.status);
    }
    for (const choice of event.choices ?? []) {
      heard.tokens(tokensOf(choice));
      if (choice.finish_reason) {
        heard.finished(choice.finish_reason);
      }
    }
    if (event.interventions) {
      heard.reports(event.interventions);
    }
  }
}
