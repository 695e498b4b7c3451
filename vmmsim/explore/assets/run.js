// A run as typed columns, and what follows from them: times, lives, registers at any row.

const [ACCESS, EVENT, SNAPSHOT, RESTORE, END] = [0, 1, 2, 3, 4];
/** A copy of all registers is kept each so many rows. */
const CHECKPOINT = 256;

/** The page's data, unpacked. Rejects where the browser lacks DecompressionStream. */
async function unpack() {
  if (typeof DecompressionStream === "undefined") {
    throw new Error(
      "This browser is too old for this page: it needs DecompressionStream (Chrome 80, Firefox 113, Safari 16.4).",
    );
  }
  const text = atob($("data").textContent);
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

class Run {
  constructor(data, name) {
    Object.assign(this, {
      name,
      header: data.header,
      end: data.end,
      strings: data.strings,
      values: data.values,
    });
    Object.assign(this, { names: data.names, codes: data.codes, kvm: data.kvm, looks: data.looks });
    const rows = data.rows;
    this.length = rows.type.length;
    this.type = Uint8Array.from(rows.type);
    for (const column of [
      "kind",
      "n",
      "size",
      "value",
      "cpu",
      "rip",
      "device",
      "register",
      "code",
      "output",
      "then",
      "text",
      "target",
      "look",
    ]) {
      this[column] = Int32Array.from(rows[column]);
    }
    for (const column of ["address", "guest", "vmm"]) this[column] = Float64Array.from(rows[column]);
    this.regsAt = Int32Array.from(data.regs.at);
    this.regName = Int32Array.from(data.regs.name);
    this.regValue = Int32Array.from(data.regs.value);
    this.start = data.start;
    this.places = new Map(data.header.devices.map((device) => [`${device[1]} ${device[0]}`, device]));
    this.#times();
    this.#lives();
    this.#checkpoints();
    this.printed = Array.from(this.output.keys()).filter((row) => this.output[row]);
    this.accesses = this.type.reduce((sum, type) => sum + (type === ACCESS ? 1 : 0), 0);
  }

  kindName(row) {
    return this.strings[this.kind[row]];
  }
  deviceName(row) {
    return this.strings[this.device[row]];
  }
  valueDigits(row) {
    return this.values[this.value[row]];
  }

  /** `before[row]` is what the run took before it: nanoseconds of guest and VMM, of all vCPUs together. */
  #times() {
    this.before = new Float64Array(this.length + 1);
    this.guestTime = this.vmmTime = 0;
    for (let row = 0; row < this.length; row++) {
      this.before[row + 1] = this.before[row] + this.guest[row] + this.vmm[row];
      this.guestTime += this.guest[row];
      this.vmmTime += this.vmm[row];
    }
    this.timed = this.before[this.length] > 0;
  }

  /** `undone[row]` is the row of the restore by which the guest forgot it, or 0. */
  #lives() {
    this.jumps = [];
    this.undone = new Int32Array(this.length);
    const life = []; // spans [first, last] of what the guest remembers
    const forget = (back, by) => {
      while (life.length && life.at(-1)[1] > back) {
        const span = life.at(-1);
        const from = Math.max(span[0], back + 1);
        this.undone.fill(by, from, span[1] + 1);
        if (from > span[0]) span[1] = back;
        else life.pop();
      }
    };
    for (let row = 0; row < this.length; row++) {
      const type = this.type[row];
      if (type === SNAPSHOT || type === RESTORE) this.jumps.push(row);
      if (type === RESTORE && this.target[row] >= 0) {
        // Back to a moment that was itself undone: the life that led there is real again.
        const again = [];
        let at = this.target[row];
        while (at >= 0 && this.undone[at]) {
          this.undone[at] = 0;
          again.push([at, at]);
          at = this.type[at] === RESTORE ? this.target[at] : at - 1;
        }
        forget(at, row);
        life.push(...again.reverse(), [row, row]);
      } else if (life.length && life.at(-1)[1] === row - 1) life.at(-1)[1] = row;
      else life.push([row, row]);
    }
    this.restores = this.jumps.filter((row) => this.type[row] === RESTORE);
    /** Spans of undone rows, for drawing: [first, last]. */
    this.undoneSpans = [];
    for (let row = 0; row < this.length; row++) {
      if (!this.undone[row]) continue;
      const span = this.undoneSpans.at(-1);
      if (span && span[1] === row - 1) span[1] = row;
      else this.undoneSpans.push([row, row]);
    }
  }

  #checkpoints() {
    const known = new Map(this.names.map((name, at) => [name, at]));
    for (const [name] of this.start) if (!known.has(name)) known.set(name, this.names.push(name) - 1);
    this.cpus = this.cpu.reduce((most, cpu) => Math.max(most, cpu), 0) + 1;
    const now = new Int32Array(this.cpus * this.names.length).fill(-1);
    for (const [name, digits] of this.start) now[known.get(name)] = this.values.push(digits) - 1;
    this.checkpoints = [];
    for (let row = 0; row < this.length; row++) {
      if (row % CHECKPOINT === 0) this.checkpoints.push(now.slice());
      this.#apply(now, row);
    }
    this.registered = this.start.length > 0 || this.regName.length > 0;
  }

  #apply(now, row) {
    const base = this.cpu[row] * this.names.length;
    for (let at = this.regsAt[row]; at < this.regsAt[row + 1]; at++)
      now[base + this.regName[at]] = this.regValue[at];
  }

  /** The registers of the row's vCPU: Map from name to {digits, was}; `was` only where the row changed it. */
  registers(row) {
    const found = new Map();
    if (!this.checkpoints.length) return found;
    const first = row - (row % CHECKPOINT);
    const now = this.checkpoints[first / CHECKPOINT].slice();
    for (let at = first; at < row; at++) this.#apply(now, at);
    const base = this.cpu[row] * this.names.length;
    const old = now.slice(base, base + this.names.length);
    this.#apply(now, row);
    this.names.forEach((name, at) => {
      const value = now[base + at];
      if (value >= 0)
        found.set(name, {
          digits: this.values[value],
          was: old[at] >= 0 && old[at] !== value ? this.values[old[at]] : undefined,
        });
    });
    return found;
  }

  /** What the look at the row saw: {state, memory}, or null without one. */
  lookAt(row) {
    if (!this.look[row]) return null;
    const [state, memory] = this.looks[this.look[row] - 1];
    return { state, memory };
  }

  /** The state of the row's device as of the last look at it: Map from field to {lines, old, row}. */
  deviceState(row) {
    const fields = new Map();
    for (const at of this.#looksAt(this.device[row])) {
      if (at > row) break;
      for (const [name, lines] of this.lookAt(at).state)
        fields.set(name, { lines, old: fields.get(name)?.lines, row: at });
    }
    return fields;
  }

  /** The rows at which a look saw a device's state change. */
  #looksAt(device) {
    if (!this.looksByDevice) {
      this.looksByDevice = new Map();
      for (let row = 0; row < this.length; row++) {
        if (this.type[row] !== ACCESS || this.look[row] < 2 || !this.lookAt(row).state.length) continue;
        const rows = this.looksByDevice.get(this.device[row]);
        if (rows) rows.push(row);
        else this.looksByDevice.set(this.device[row], [row]);
      }
    }
    return this.looksByDevice.get(device) ?? [];
  }

  /** The last characters printed up to the row, oldest first: [{text, undone, here}], and how many came before. */
  console(row, most = 4000) {
    const pieces = [];
    let low = 0,
      high = this.printed.length,
      room = most;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.printed[middle] <= row) low = middle + 1;
      else high = middle;
    }
    let at = low - 1;
    for (; at >= 0 && room > 0; at--) {
      const from = this.printed[at];
      const text = this.strings[this.output[from]];
      pieces.push({
        text: text.slice(-room),
        undone: this.undone[from] > 0 && this.undone[from] <= row,
        here: from === row,
      });
      room -= text.length;
    }
    return { pieces: pieces.reverse(), cut: at >= 0 || room < 0 };
  }

  /** The instruction that made the row's exit, or "". */
  instruction(row) {
    const code = this.codes[this.code[row] - 1];
    return code ? (code[1].find((line) => line[0] === code[0])?.[2] ?? "") : "";
  }

  /** What happened behind the row, up to the next access: their rows. */
  following(row) {
    const rows = [];
    for (let at = row + 1; at < this.length && this.type[at] !== ACCESS; at++) rows.push(at);
    return rows;
  }
}
