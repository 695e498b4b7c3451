// What the list shows: the rows of one run, or of two beside each other; less what is filtered out.

/** A *place* is a row of the list before filters: `a[place]` and `b[place]` are the runs' rows, or -1. */
class View {
  constructor(runs, compared) {
    this.runs = runs;
    this.compared = compared;
    [this.a, this.b] =
      runs.length === 1
        ? [Int32Array.from({ length: runs[0].length }, (_, row) => row), null]
        : pairs(...runs);
    this.length = this.a.length;
    this.placeOf = runs.map((run, side) => {
      const places = new Int32Array(run.length);
      const rows = side ? this.b : this.a;
      rows.forEach((row, place) => {
        if (row >= 0) places[row] = place;
      });
      return places;
    });
    this.#divergence();
    this.hiddenKinds = new Set();
    this.hiddenDevices = new Set();
    this.only = false;
    this.setQuery("");
  }

  /** The rows at a place: [run, row] of each side that has one. */
  at(place) {
    const found = [];
    if (this.a[place] >= 0) found.push([this.runs[0], this.a[place]]);
    if (this.b && this.b[place] >= 0) found.push([this.runs[1], this.b[place]]);
    return found;
  }

  /** Number of the access at or before the place. */
  n(place) {
    const [run, row] = this.at(place)[0];
    return run.n[row];
  }

  /** The place of access `n`, or of the last one before it. */
  placeOfAccess(n) {
    let low = 0,
      high = this.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.n(middle) < n) low = middle + 1;
      else high = middle;
    }
    return this.length ? low : -1;
  }

  #divergence() {
    this.different = new Uint8Array(this.length);
    this.first = -1;
    if (!this.b) return;
    const flags = new Uint8Array(this.length + 2);
    const pairsOf = this.compared.differ;
    for (let at = 0; at < pairsOf.length; at += 2) flags.fill(1, pairsOf[at], pairsOf[at] + pairsOf[at + 1]);
    const [left, right] = this.runs;
    for (let place = 0; place < this.length; place++) {
      const a = this.a[place],
        b = this.b[place];
      if (a < 0 || b < 0) this.different[place] = 1;
      else if (left.type[a] === ACCESS) this.different[place] = flags[left.n[a]] || 0;
      else if (left.type[a] === END) this.different[place] = left.end.kind !== right.end.kind ? 1 : 0;
      else this.different[place] = left.kindName(a) !== right.kindName(b) ? 1 : 0;
    }
    if (this.compared.first === null) return;
    for (let place = 0; place < this.length && this.first < 0; place++) {
      const [run, row] = this.at(place)[0];
      if (this.different[place] && (run.n[row] >= this.compared.first || run.type[row] === END))
        this.first = place;
    }
  }

  /** Counts of all places by kind and by device: Map from name to count, in order of the name's first place. */
  counts() {
    const kinds = new Map(),
      devices = new Map();
    for (const [side, run] of this.runs.entries()) {
      const byKind = new Int32Array(run.strings.length),
        byDevice = new Int32Array(run.strings.length);
      for (let row = 0; row < run.length; row++) {
        byKind[run.kind[row]]++;
        if (run.type[row] === ACCESS) byDevice[run.device[row]]++;
      }
      for (const [counts, by] of [
        [kinds, byKind],
        [devices, byDevice],
      ]) {
        by.forEach((count, at) => {
          if (count)
            counts.set(run.strings[at], Math.max(side ? (counts.get(run.strings[at]) ?? 0) : 0, count));
        });
      }
    }
    return { kinds, devices };
  }

  /** Take a query; raises QueryError and keeps the old one where it is none. */
  setQuery(text) {
    const terms = parseQuery(text);
    this.query = text;
    this.matched = new Uint8Array(this.length);
    this.matches = [];
    if (terms.length) {
      const tests = this.runs.map((run, side) =>
        rowTest(terms, run, (row) => this.different[this.placeOf[side][row]] === 1),
      );
      for (let place = 0; place < this.length; place++) {
        const hit =
          (this.a[place] >= 0 && tests[0](this.a[place])) ||
          (this.b && this.b[place] >= 0 && tests[1](this.b[place]));
        if (hit) {
          this.matched[place] = 1;
          this.matches.push(place);
        }
      }
    }
    this.refresh();
  }

  /** Make `rows`, the places that are shown, anew after a change of the filters. */
  refresh() {
    const hidden = this.runs.map((run) => ({
      kinds: run.strings.map((text) => this.hiddenKinds.has(text)),
      devices: run.strings.map((text) => this.hiddenDevices.has(text)),
    }));
    const shows = (side, row) =>
      row >= 0 &&
      !hidden[side].kinds[this.runs[side].kind[row]] &&
      !(this.runs[side].type[row] === ACCESS && hidden[side].devices[this.runs[side].device[row]]);
    const only = this.only && this.query.trim() !== "";
    const rows = [];
    for (let place = 0; place < this.length; place++) {
      if (only && !this.matched[place]) continue;
      if (shows(0, this.a[place]) || (this.b && shows(1, this.b[place]))) rows.push(place);
    }
    this.rows = Int32Array.from(rows);
  }

  /** Where in `rows` the place is, or where it would be. */
  indexOf(place) {
    return lowerBound(this.rows, place);
  }

  /** The next or previous of some sorted places, seen from one; around the end to the other one. */
  neighbour(places, place, step) {
    if (!places.length) return -1;
    const at = lowerBound(places, step > 0 ? place + 1 : place) - (step > 0 ? 0 : 1);
    return places[(at + places.length) % places.length];
  }

  /** Places of all jumps. */
  get jumps() {
    this.jumpPlaces ??= [
      ...new Set(this.runs.flatMap((run, side) => run.jumps.map((row) => this.placeOf[side][row]))),
    ].sort((x, y) => x - y);
    return this.jumpPlaces;
  }
}

/** The first index of sorted numbers whose number is not below `value`. */
function lowerBound(sorted, value) {
  let low = 0,
    high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The rows of two runs beside each other: by the number of the access, and in order what is behind it. The ends
    come last, beside each other. */
function pairs(left, right) {
  const a = [],
    b = [];
  let x = 0,
    y = 0;
  const key = (run, row) =>
    row >= run.length
      ? Infinity
      : run.type[row] === END
        ? Number.MAX_VALUE
        : run.n[row] * 2 + (run.type[row] === ACCESS ? 0 : 1);
  while (x < left.length || y < right.length) {
    const p = key(left, x),
      q = key(right, y);
    a.push(p <= q ? x++ : -1);
    b.push(q <= p ? y++ : -1);
  }
  return [Int32Array.from(a), Int32Array.from(b)];
}
