// Calls of this server. Addresses are relative to the page, so that a proxy may put a path before it.

let key = "";

/** Send this key with every call from now on. It is held in this variable and nowhere else. */
export function useKey(text) {
  key = text.trim();
}

/** Whether calls carry a key. */
export function hasKey() {
  return key !== "";
}

/** The server's address, without a slash at its end. */
export function baseAddress() {
  return new URL(".", document.baseURI).href.replace(/\/$/, "");
}

/** A call that the server refused, or did not answer (status 0). `param` is the path of what was wrong, or null. */
export class Refusal extends Error {
  constructor(message, status, param = null) {
    super(message);
    this.status = status;
    this.param = typeof param === "string" ? param : null;
  }
}

/** The refusal in an error body, which is OpenAI's envelope, or a text where vLLM has none. */
export function refusalOf(body, status) {
  const error = body?.error ?? body?.detail;
  if (typeof error === "string") {
    return new Refusal(error, status);
  }
  return new Refusal(
    error?.message ?? `the server answered with status ${status}`,
    status,
    error?.param,
  );
}

/** A good response. Throws a Refusal, or what `signal` throws when it is aborted. */
export async function send(path, body = undefined, signal = undefined) {
  const headers = {};
  if (key) {
    headers.Authorization = `Bearer ${key}`;
  }
  const options = { headers, signal };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    options.method = "POST";
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") {
      throw error;
    }
    throw new Refusal("the server does not answer", 0);
  }
  if (response.ok) {
    return response;
  }
  throw refusalOf(await response.json().catch(() => null), response.status);
}

/** The JSON of a good response. */
export async function call(path, body = undefined, signal = undefined) {
  return (await send(path, body, signal)).json();
}
