// The search box: words that all must be in a row, some of them with a key (kind:, device:, addr: ...).

const QUERY_KEYS = {
  kind: "text",
  device: "text",
  addr: "number",
  value: "number",
  size: "number",
  cpu: "number",
  rip: "number",
  n: "number",
  then: "text",
  out: "text",
  code: "text",
  is: "word",
};
const QUERY_IS = ["jump", "event", "undone", "looked", "unclaimed", "changed", "different"];

class QueryError extends Error {}

/** The terms of a query. Raises QueryError, whose message is for people. */
function parseQuery(text) {
  const terms = [];
  for (const [, minus, key, quoted, bare] of text.matchAll(/(-?)(?:([a-z]+):)?(?:"([^"]*)"?|([^\s"]+))/gi)) {
    const word = (quoted ?? bare).toLowerCase();
    const name = key?.toLowerCase();
    const negative = minus === "-";
    if (name === undefined || !(name in QUERY_KEYS)) {
      terms.push({ negative, type: "any", word: name === undefined ? word : `${name}:${word}` });
    } else if (QUERY_KEYS[name] === "number") {
      terms.push({ negative, type: name, range: parseRange(name, word) });
    } else if (name === "is" && !QUERY_IS.includes(word)) {
      throw new QueryError(`is: knows ${QUERY_IS.join(", ")}`);
    } else terms.push({ negative, type: name, word });
  }
  return terms;
}

/** `0x3f8`, `1016` or `0x1000-0x1fff`, as BigInts. */
function parseRange(name, text) {
  const ends = text.split("-");
  if (ends.length > 2 || !ends.every((end) => /^(0x[0-9a-f]+|\d+)$/.test(end))) {
    throw new QueryError(`${name}: wants a number such as 0x3f8, or a range such as 0x1000-0x1fff`);
  }
  const [low, high = low] = ends.map(BigInt);
  return [low, high];
}

/** What tells whether a row of the run fits all terms. `differs` tells whether a row differs from the other run's. */
function rowTest(terms, run, differs) {
  const has = (word) => run.strings.map((text) => text.toLowerCase().includes(word));
  const inCode = (word) => [
    false,
    ...run.codes.map((code) =>
      (code[1].find((line) => line[0] === code[0])?.[2] ?? "").toLowerCase().includes(word),
    ),
  ];
  const within =
    ([low, high]) =>
    (digits) => {
      const value = BigInt(digits);
      return value >= low && value <= high;
    };
  const inValues = (range) => run.values.map((digits) => within(range)("0x" + digits));

  const make = (term) => {
    switch (term.type) {
      case "kind": {
        // `kind:write` and `kind:port` are as good as `kind:port_write`.
        const found = has(term.word);
        return (row) => found[run.kind[row]];
      }
      case "device": {
        // From the beginning of a word on: `pic` is `pic-slave` too, but not `lapic`.
        const found = run.strings.map((text) => `-${text.toLowerCase()}`.includes(`-${term.word}`));
        return (row) => run.device[row] > 0 && found[run.device[row]];
      }
      case "then": {
        const found = has(term.word);
        return (row) => run.then[row] > 0 && found[run.then[row]];
      }
      case "out": {
        const found = has(term.word);
        return (row) => run.output[row] > 0 && found[run.output[row]];
      }
      case "code": {
        const found = inCode(term.word);
        return (row) => found[run.code[row]];
      }
      case "addr": {
        const low = Number(term.range[0]),
          high = Number(term.range[1]);
        return (row) => run.type[row] === ACCESS && run.address[row] >= low && run.address[row] <= high;
      }
      case "value": {
        const found = inValues(term.range);
        return (row) => run.value[row] >= 0 && found[run.value[row]];
      }
      case "rip": {
        const found = inValues(term.range);
        return (row) => run.rip[row] >= 0 && found[run.rip[row]];
      }
      case "size":
      case "cpu":
      case "n": {
        const low = Number(term.range[0]),
          high = Number(term.range[1]),
          column = run[term.type];
        return (row) => run.type[row] === ACCESS && column[row] >= low && column[row] <= high;
      }
      case "is":
        return {
          jump: (row) => run.type[row] === SNAPSHOT || run.type[row] === RESTORE,
          event: (row) => run.type[row] === EVENT,
          undone: (row) => run.undone[row] > 0,
          looked: (row) => run.look[row] > 0,
          unclaimed: (row) => run.type[row] === ACCESS && run.header.detailed && run.device[row] === 0,
          changed: (row) => Boolean(run.lookAt(row)?.memory.length),
          different: differs,
        }[term.word];
      default: {
        const found = has(term.word),
          code = inCode(term.word);
        const value = /^(0x)?[0-9a-f]+$/.test(term.word)
          ? term.word.replace(/^0x/, "").replace(/^0+(?=.)/, "")
          : null;
        const values = value === null ? null : run.values.map((digits) => digits === value);
        return (row) =>
          found[run.kind[row]] ||
          (run.device[row] && found[run.device[row]]) ||
          (run.register[row] && found[run.register[row]]) ||
          (run.then[row] && found[run.then[row]]) ||
          (run.output[row] && found[run.output[row]]) ||
          (run.text[row] && found[run.text[row]]) ||
          code[run.code[row]] ||
          (values !== null &&
            run.type[row] === ACCESS &&
            (values[run.value[row]] || run.address[row].toString(16) === value));
      }
    }
  };
  const tests = terms.map((term) => ({ negative: term.negative, test: make(term) }));
  return (row) => tests.every(({ negative, test }) => Boolean(test(row)) !== negative);
}
