// Which tokens two answers share.

const MOST_CELLS = 4_000_000;

/**
 * For each name of `before` its partner's place in `after`, and the other way round; -1: it has none.
 *
 * Partners are a longest common subsequence. Where the two are too long for that, they are what the two
 * begin and end with.
 */
export function align(before, after) {
  const pairs = { before: before.map(() => -1), after: after.map(() => -1) };
  const pair = (one, other) => {
    pairs.before[one] = other;
    pairs.after[other] = one;
  };
  let start = 0;
  while (start < before.length && start < after.length && before[start] === after[start]) {
    pair(start, start);
    start += 1;
  }
  let beforeEnd = before.length;
  let afterEnd = after.length;
  while (beforeEnd > start && afterEnd > start && before[beforeEnd - 1] === after[afterEnd - 1]) {
    beforeEnd -= 1;
    afterEnd -= 1;
    pair(beforeEnd, afterEnd);
  }
  const rows = beforeEnd - start;
  const columns = afterEnd - start;
  if (rows * columns > MOST_CELLS) {
    return pairs;
  }
  // longest[i][j]: of what is left from the i-th and the j-th on.
  const width = columns + 1;
  const longest = new Uint32Array((rows + 1) * width);
  for (let i = rows - 1; i >= 0; i -= 1) {
    for (let j = columns - 1; j >= 0; j -= 1) {
      longest[i * width + j] =
        before[start + i] === after[start + j]
          ? longest[(i + 1) * width + j + 1] + 1
          : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    }
  }
  for (let i = 0, j = 0; i < rows && j < columns;) {
    if (before[start + i] === after[start + j]) {
      pair(start + i, start + j);
      i += 1;
      j += 1;
    } else if (longest[(i + 1) * width + j] >= longest[i * width + j + 1]) {
      i += 1;
    } else {
      j += 1;
    }
  }
  return pairs;
}

/** The same for answers that still grow: places up to the shorter one's end are compared, one by one. */
export function alignSoFar(before, after) {
  const common = Math.min(before.length, after.length);
  // What the other answer has not reached yet does not differ from it.
  const partner = (other) => (name, at) => (at >= common || other[at] === name ? at : -1);
  return { before: before.map(partner(after)), after: after.map(partner(before)) };
}
