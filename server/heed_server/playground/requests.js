// The page's state as the bodies that the server takes.

/** Log-probabilities of so many tokens are asked for at each place. */
const LIKELIEST = 5;

/** Below `/v1/`. */
export function pathOf(state) {
  return state.kind === "chat" ? "chat/completions" : "completions";
}

/** The body's prompt. pictures: `{uri}` each, which only chats have. */
export function promptOf(state, pictures) {
  if (state.kind !== "chat") {
    return { prompt: state.prompt };
  }
  const images = pictures.map(({ uri }) => ({ type: "image_url", image_url: { url: uri } }));
  const content = images.length ? [...images, { type: "text", text: state.prompt }] : state.prompt;
  const system = state.system ? [{ role: "system", content: state.system }] : [];
  return { messages: [...system, { role: "user", content }] };
}

/** The body of a generation with the state's interventions; null and undefined are left out. */
export function generationOf(state, pictures) {
  const { model, max_tokens, temperature, seed, interventions } = state;
  const fields = {
    model,
    ...promptOf(state, pictures),
    max_tokens,
    temperature,
    seed,
    interventions,
  };
  return Object.fromEntries(
    Object.entries(fields).filter(([, value]) => value !== undefined && value !== null),
  );
}

/** The same body, asking for log-probabilities. */
export function withLogprobs(state, body) {
  return state.kind === "chat"
    ? { ...body, logprobs: true, top_logprobs: LIKELIEST }
    : { ...body, logprobs: LIKELIEST };
}

/** Spans of the prompt whose mass is measured. */
export function wordsOf(state) {
  return (state.words ?? "").split("\n").filter((word) => word !== "");
}

/** The body of `POST /v1/attention` but for what it is to say. */
export function inspectionOf(state, pictures) {
  const { model, interventions } = state;
  return {
    model,
    ...promptOf(state, pictures),
    interventions,
    rows: state.rows === "all" ? "all" : [-1],
  };
}
