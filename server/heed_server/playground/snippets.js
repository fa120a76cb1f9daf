// A request as commands to copy. Keys and pictures are named there, not written out.

const KEY = "HEED_API_KEY";

/**
 * @typedef Request what is sent: path (`chat/completions` or `completions`), body (pictures in it are data
 * URIs), pictures (file names, in the order of the body), keyed (whether calls need a key)
 */

/** A shell command that sends the request with curl. */
export function curl(base, { path, body, pictures, keyed }) {
  const lines = [
    ...pictures.map((name, at) => `picture${at + 1}=$(base64 < ${quoted(name)} | tr -d '\\n')`),
    `curl -s ${quoted(`${base}/v1/${path}`)} \\`,
    "  -H 'Content-Type: application/json' \\",
  ];
  if (keyed) {
    lines.push(`  -H "Authorization: Bearer $${KEY}" \\`);
  }
  if (!pictures.length) {
    return [...lines, `  -d ${quoted(JSON.stringify(body, null, 2))}`].join("\n");
  }
  // Of the JSON the shell is to read nothing but the names of the pictures.
  const text = JSON.stringify(
    named(body, (at, type) => `\0${type};base64,\0${at + 1}\0`),
    null,
    2,
  )
    .replaceAll("\\\\", "\\u005c")
    .replaceAll("$", "\\u0024")
    .replaceAll("`", "\\u0060")
    .replace(/\\u0000(.*?)\\u0000(\d+)\\u0000/g, "$1$${picture$2}");
  return [...lines, "  -d @- <<JSON", text, "JSON"].join("\n");
}

/** A Python program that sends the request with the `openai` package. */
export function python(base, { path, body, pictures, keyed }) {
  const { interventions, ...fields } = body;
  const call = path === "completions" ? "completions" : "chat.completions";
  const written = named(
    fields,
    (at, type) => new Code(`picture(${literal(pictures[at])}, ${literal(type)})`),
  );
  const reading = [
    "def picture(file, kind):",
    "    return f\"{kind};base64,{base64.b64encode(open(file, 'rb').read()).decode()}\"",
    "",
    "",
  ];
  return [
    ...(pictures.length ? ["import base64"] : []),
    ...(keyed ? ["import os"] : []),
    ...(pictures.length || keyed ? [""] : []),
    "from openai import OpenAI",
    "",
    ...(pictures.length ? ["", ...reading] : []),
    `client = OpenAI(base_url=${literal(`${base}/v1`)}, api_key=${keyed ? `os.environ["${KEY}"]` : '"none"'})`,
    `answer = client.${call}.create(`,
    ...Object.entries(written).map(([name, value]) => `    ${name}=${literal(value, "    ")},`),
    `    extra_body=${literal({ interventions }, "    ")},`,
    ")",
    `print(answer.choices[0].${path === "completions" ? "text" : "message.content"}, answer.interventions)`,
  ].join("\n");
}

class Code {
  constructor(text) {
    this.text = text;
  }
}

/** `value` with the data URI of each picture replaced by `name(number from 0, its beginning "data:type")`. */
function named(value, name) {
  let at = 0;
  const walk = (part) => {
    if (Array.isArray(part)) {
      return part.map(walk);
    }
    if (typeof part !== "object" || part === null) {
      return part;
    }
    if (part.type === "image_url") {
      const type = part.image_url.url.split(";", 1)[0];
      at += 1;
      return { ...part, image_url: { url: name(at - 1, type) } };
    }
    return Object.fromEntries(Object.entries(part).map(([key, each]) => [key, walk(each)]));
  };
  return walk(value);
}

/** A text as one word of a shell. */
function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** A JSON value as Python writes it; long ones over several lines. */
export function literal(value, indent = "") {
  if (value instanceof Code) {
    return value.text;
  }
  if (value === null || value === undefined) {
    return "None";
  }
  if (typeof value === "boolean") {
    return value ? "True" : "False";
  }
  if (typeof value !== "object") {
    // JSON's texts are Python's too, but for halves of characters, which it joins and Python does not.
    return JSON.stringify(value);
  }
  const inner = `${indent}    `;
  const list = Array.isArray(value);
  const items = (deeper) =>
    list
      ? value.map((item) => literal(item, deeper))
      : Object.entries(value).map(
          ([key, item]) => `${JSON.stringify(key)}: ${literal(item, deeper)}`,
        );
  const [open, close] = list ? "[]" : "{}";
  const short = `${open}${items(indent).join(", ")}${close}`;
  if (short.length + indent.length <= 80 && !short.includes("\n")) {
    return short;
  }
  return `${open}\n${items(inner)
    .map((item) => `${inner}${item},\n`)
    .join("")}${indent}${close}`;
}
