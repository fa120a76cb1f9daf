// Numbers out of `POST /v1/attention`: what the heat map and the overlay draw.

/** Means over the last axis but the depth wanted: `[layers][heads][rows]` becomes `[layers][heads]`. */
export function meanOverRows(values) {
  return values.map((heads) => heads.map(mean));
}

/** The mean of numbers; 0 of none. */
export function mean(values) {
  return values.length ? values.reduce((sum, each) => sum + each, 0) / values.length : 0;
}

/** What mass can be shown of an answer: `[{name, of(answer)}]`, each `of` giving [layers][heads]. */
export function measures(answer, words) {
  const found = [{ name: "the first token", of: ({ mass }) => meanOverRows(mass.position_0) }];
  words.forEach((word, at) => {
    found.push({
      name: `“${word}”`,
      of: ({ mass }) =>
        mass.spans.map((heads) => heads.map((rows) => mean(rows.map((row) => row[at])))),
    });
  });
  if (answer.mass.image) {
    found.push({ name: "the images", of: ({ mass }) => meanOverRows(mass.image) });
  }
  return found;
}

/** `after` minus `before`, in any depth. */
export function difference(before, after) {
  return Array.isArray(after)
    ? after.map((each, at) => difference(before[at], each))
    : after - before;
}

/** The largest size of a number in nested lists; at least `least`, so that it can be divided by. */
export function largest(values, least = 1e-6) {
  return values.flat(Infinity).reduce((most, each) => Math.max(most, Math.abs(each)), least);
}

/** One weight for each key: the mean over heads of what was asked for of one layer's row or column means. */
export function keyWeights(answer) {
  const [layer] = answer.attention
    ? answer.attention.map((heads) => heads.map((rows) => rows[0]))
    : answer.column_mean;
  return layer[0].map((_, key) => mean(layer.map((head) => head[key])));
}

/** The weights of one image's keys, in order. ranges: `[start, end)` of them. */
export function imageWeights(weights, ranges) {
  return ranges.flatMap(([start, end]) => weights.slice(start, end));
}

/**
 * The grids `{columns, rows, square}` that a picture's keys can make, the likeliest first.
 *
 * square: the encoder saw the middle square of the picture; else all of it. Which it was the server does not
 * say: as many keys as a square has are taken for one, and other grids are ordered by how near their shape
 * is to the picture's.
 */
export function grids(count, width, height) {
  const found = [];
  for (let rows = 1; rows <= count; rows += 1) {
    if (count % rows === 0) {
      const columns = count / rows;
      const off = Math.abs(Math.log(columns / rows / (width / height)));
      found.push({ columns, rows, square: columns === rows, off: columns === rows ? -1 : off });
    }
  }
  return found
    .sort((one, other) => one.off - other.off)
    .slice(0, 4)
    .map(({ columns, rows, square }) => ({ columns, rows, square }));
}

/** A token of a vocabulary as it reads: marks for spaces and line ends become what they stand for. */
export function readable(token) {
  return token.replace(/[Ġ▁]/g, " ").replace(/Ċ/g, "↵");
}
