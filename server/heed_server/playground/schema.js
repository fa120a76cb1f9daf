// What a JSON Schema asks a form for. Nothing here knows a method, or a name of a parameter.

const MOST_STEPS = 1024;

/** The schema without null among its variants, and with the only variant that is then left put in. */
export function plainSchema(schema) {
  if (schema.properties) {
    return schema;
  }
  const variants = (schema.anyOf ?? schema.oneOf ?? []).filter((each) => each.type !== "null");
  const { anyOf, oneOf, ...rest } = schema;
  if (variants.length === 1) {
    return { ...plainSchema(variants[0]), ...rest };
  }
  return variants.length ? { ...rest, variants } : schema;
}

/**
 * The control that a plain schema needs: "variants", "constant", "choice", "switch", "number", "text",
 * "numbers" (a short list of them), "list", "object", or "json" for everything else.
 */
export function kindOf(schema) {
  if (schema.variants) {
    return "variants";
  }
  if (Object.hasOwn(schema, "const")) {
    return "constant";
  }
  if (Array.isArray(schema.enum)) {
    return "choice";
  }
  switch (schema.type) {
    case "boolean":
      return "switch";
    case "integer":
    case "number":
      return "number";
    case "string":
      return "text";
    case "array":
      return kindOfList(schema);
    case "object":
      return schema.properties ? "object" : "json";
    default:
      return "json";
  }
}

function kindOfList(schema) {
  if (!schema.items) {
    return "json";
  }
  return kindOf(plainSchema(schema.items)) === "number" ? "numbers" : "list";
}

/** Whether a control for this schema can show `value`: types alone, not bounds. */
export function fits(raw, value) {
  const schema = plainSchema(raw);
  switch (kindOf(schema)) {
    case "variants":
      return schema.variants.some((each) => fits(each, value));
    case "constant":
      return value === schema.const;
    case "choice":
      return schema.enum.includes(value);
    case "switch":
      return typeof value === "boolean";
    case "number":
      return typeof value === "number";
    case "text":
      return typeof value === "string";
    case "numbers":
      return (
        Array.isArray(value) && value.every((each) => ["number", "string"].includes(typeof each))
      );
    case "list":
      return Array.isArray(value) && value.every((each) => fits(schema.items, each));
    case "object":
      return (
        isObject(value) &&
        Object.keys(value).every(
          (name) =>
            Object.hasOwn(schema.properties, name) && fits(schema.properties[name], value[name]),
        )
      );
    default:
      return schema.type === undefined || schema.type !== "object" || isObject(value);
  }
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** What a variant is called in a menu. */
export function variantName(raw) {
  const schema = plainSchema(raw);
  if (kindOf(schema) === "constant") {
    return String(schema.const);
  }
  const words = { array: "list", integer: "number", string: "text" };
  const name = schema.title ?? words[schema.type] ?? schema.type ?? "JSON";
  // TextSpan becomes text span.
  return name.replace(/([a-z])([A-Z])/g, "$1 $2").toLowerCase();
}

/** `{least, most, step, slider}` of a number: what its two controls are set to. Bounds may be undefined. */
export function rangeOf(schema) {
  const whole = schema.type === "integer";
  const bounds = [
    schema.minimum ?? schema.exclusiveMinimum,
    schema.maximum ?? schema.exclusiveMaximum,
  ];
  const width = bounds[1] - bounds[0];
  const step = whole ? 1 : niceStep(width);
  const least =
    schema.minimum === undefined && bounds[0] !== undefined ? bounds[0] + step : bounds[0];
  const most =
    schema.maximum === undefined && bounds[1] !== undefined ? bounds[1] - step : bounds[1];
  return { least, most, step, slider: Number.isFinite(width) && width / step <= MOST_STEPS };
}

/** About a hundredth of the width: 1, 2 or 5 times a power of ten. */
function niceStep(width) {
  if (!(width > 0 && Number.isFinite(width))) {
    return 1;
  }
  const power = 10 ** Math.floor(Math.log10(width / 100));
  const factor = [1, 2, 5, 10].find((each) => each * power >= width / 100 - 1e-12);
  return Number((factor * power).toPrecision(1));
}

/** A value to begin with where one has to be given: the default, an example, or a first thing that fits. */
export function firstValue(raw) {
  const schema = plainSchema(raw);
  if (schema.default !== undefined && schema.default !== null) {
    return schema.default;
  }
  if (schema.examples?.length) {
    return schema.examples[0];
  }
  switch (kindOf(schema)) {
    case "variants":
      return firstValue(schema.variants[0]);
    case "constant":
      return schema.const;
    case "choice":
      return schema.enum[0];
    case "switch":
      return false;
    case "number": {
      const { least, most, step, slider } = rangeOf(schema);
      if (!slider) {
        return Math.min(Math.max(0, least ?? 0), most ?? 0);
      }
      return Number((step * Math.floor((least + most) / 2 / step + 1e-9)).toPrecision(6));
    }
    case "text":
      return "";
    case "numbers":
      return [];
    case "list":
      return Array.from({ length: schema.minItems ?? 0 }, () => firstValue(schema.items));
    case "object":
      return firstObject(schema);
    default:
      return schema.type === "array" ? [] : {};
  }
}

/** The fields of an object that have to be given, with their first values. */
export function firstObject(schema) {
  const names = [...new Set([...(schema.required ?? []), ...oneOfMany(schema)])];
  return Object.fromEntries(names.map((name) => [name, firstValue(schema.properties[name])]));
}

/** Fields to give where a schema asks for one of several: the first with a slider, or the first. */
function oneOfMany(schema) {
  const choices = (schema.oneOf ?? schema.anyOf ?? [])
    .map((each) => each.required ?? [])
    .filter((names) => names.length && names.every((name) => schema.properties[name]));
  const slides = (name) => {
    const field = plainSchema(schema.properties[name]);
    return kindOf(field) === "number" && rangeOf(field).slider;
  };
  return choices.find((names) => names.every(slides)) ?? choices[0] ?? [];
}

/** Numbers of a list as they are typed: `0, 2, 5..7, -1`. What is none stays a text, for the server to name. */
export function readNumbers(text) {
  return text
    .split(/[\s,]+/)
    .filter((word) => word)
    .flatMap((word) => {
      const range = /^(-?\d{1,6})\.\.(-?\d{1,6})$/.exec(word);
      if (!range) {
        return [Number.isFinite(Number(word)) ? Number(word) : word];
      }
      const [first, last] = [Number(range[1]), Number(range[2])];
      const length = Math.min(Math.max(last - first + 1, 0), MOST_STEPS);
      return Array.from({ length }, (_, at) => first + at);
    });
}
