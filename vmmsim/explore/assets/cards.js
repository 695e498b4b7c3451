// The cards of an exit: registers, the device, memory, the console. Each is null where there is nothing to say.

function card(title, ...content) {
  return el("section", { class: "card" }, el("h3", { text: title }), ...content);
}

const note = (text) => el("p", { class: "note", text });

/** A value's digits with its leading zeros held back. */
function digitsOf(digits, width) {
  const zeros = "0".repeat(Math.max(0, width - digits.length));
  return el("span", { class: "digits" }, el("span", { class: "zeros", text: zeros }), digits);
}

function registersCard(run, row, other, otherRow) {
  if (!run.registered) return null;
  const registers = run.registers(row);
  const theirs = other && otherRow >= 0 ? other.registers(otherRow) : null;
  const get = (name) => registers.get(name)?.digits;
  const long = bit(get("efer") || "0", 10);
  const mode = modeName(get);
  const parts = [];
  const left = new Set(registers.keys());
  for (const [title, belongs] of GROUPS) {
    const names = [...left].filter(belongs);
    names.forEach((name) => left.delete(name));
    const order = title === "general" ? [...GENERAL, "rip", "rflags"] : names.sort();
    const shown = order.filter(
      (name) => registers.has(name) && (title !== "general" || long || ALWAYS.has(name) || get(name) !== "0"),
    );
    if (!shown.length) continue;
    const list = el(
      "ul",
      { class: "regs" },
      ...shown.map((name) =>
        registerItem(
          name,
          registers.get(name),
          title === "general" ? (long && name !== "rflags" ? 16 : 8) : 0,
          theirs,
        ),
      ),
    );
    if (title === "general") {
      parts.push(list);
      const flags = get("rflags");
      if (flags !== undefined) parts.push(flagsLine(flags, registers.get("rflags").was));
    } else {
      const changed = shown.filter((name) => registers.get(name).was !== undefined).length;
      const summary = `${title} (${shown.length}${changed ? `, ${changed} changed` : ""})`;
      parts.push(
        el(
          "details",
          {
            class: "more",
            open: changed > 0 || registersCard.open?.has(title),
            on: {
              toggle: (event) => {
                (registersCard.open ??= new Set())[event.target.open ? "add" : "delete"](title);
              },
            },
          },
          el("summary", { text: summary }),
          list,
        ),
      );
    }
  }
  const title = run.header.cpus > 1 ? `Registers of vCPU ${run.cpu[row]}` : "Registers";
  const head = card(title, ...parts);
  if (mode) head.firstChild.append(el("span", { class: "tag", text: mode }));
  return head;
}

function registerItem(name, { digits, was }, width, theirs) {
  const differs = theirs && theirs.has(name) && theirs.get(name).digits !== digits;
  const meaning = name === "rflags" ? [] : bitNames(name, digits);
  return el(
    "li",
    {
      class: [was !== undefined ? "changed" : "", differs ? "differs" : ""].filter(Boolean).join(" ") || null,
    },
    el("span", { class: "name", text: visible(name) }),
    digitsOf(digits, width),
    was !== undefined
      ? el("span", { class: "was" }, el("span", { class: "sr", text: "changed, " }), `was ${hex(was)}`)
      : null,
    differs ? el("span", { class: "unlike", text: "≠ other run" }) : null,
    meaning.length ? el("span", { class: "bits", text: meaning.join(" ") }) : null,
  );
}

function flagsLine(digits, was) {
  const set = new Set(bitNames("rflags", digits));
  const names = [...FLAGS_SHOWN, ...[...set].filter((name) => !FLAGS_SHOWN.includes(name))];
  const before = was === undefined ? null : new Set(bitNames("rflags", was));
  return el(
    "ul",
    { class: "flags", "aria-label": "Flags" },
    ...names.map((name) => {
      const on = set.has(name),
        changed = before && before.has(name) !== on;
      const words = `${name} ${name.includes("=") ? "" : on ? "set" : "clear"}${changed ? ", changed" : ""}`;
      return el(
        "li",
        { class: `${on ? "on" : ""} ${changed ? "changed" : ""}`.trim() || null },
        el("span", { "aria-hidden": "true", text: name }),
        el("span", { class: "sr", text: words }),
      );
    }),
  );
}

function deviceCard(run, row) {
  if (run.type[row] !== ACCESS) return null;
  if (!run.header.detailed) return null;
  const name = run.deviceName(row);
  if (!name)
    return card(
      "Device",
      el("p", {
        text: run.kindName(row).endsWith("read")
          ? "Nobody answered: no device has this address, and a read gives what an empty bus gives."
          : "Nobody answered: no device has this address, and the value is lost.",
      }),
    );
  const place = run.places.get(`${run.kindName(row).split("_")[0]} ${name}`);
  const lines = [];
  if (place) {
    const [, space, start, size, chip] = place;
    const end = (BigInt("0x" + start) + BigInt(Math.max(1, size) - 1)).toString(16);
    lines.push(
      el(
        "p",
        { class: "note" },
        `${chip && chip !== name ? `${visible(chip)}, ` : ""}${space === "mmio" ? "guest-physical" : space} ${hex(start)}${size > 1 ? ` to ${hex(end)}` : ""}`,
      ),
    );
  }
  const state = run.deviceState(row);
  if (state.size) {
    const rows = [];
    for (const [field, { lines: values, old, row: from }] of state) {
      const before = new Map((old ?? []).map(([path, text]) => [path, text]));
      for (const [path, text, bits] of values) {
        const changed = from === row && (old ? before.get(path) !== text : false);
        rows.push(
          el(
            "tr",
            { class: changed ? "changed" : null },
            el("th", { scope: "row", text: visible(field + path) }),
            el(
              "td",
              {},
              el("span", { class: "mono", text: visible(text) }),
              bits ? el("span", { class: "bits", text: bits }) : null,
              changed
                ? el(
                    "span",
                    { class: "was" },
                    el("span", { class: "sr", text: "changed, " }),
                    `was ${visible(before.get(path) ?? "nothing")}`,
                  )
                : null,
            ),
          ),
        );
      }
    }
    lines.push(wide(`State of ${visible(name)}`, el("table", { class: "state" }, el("tbody", {}, ...rows))));
  }
  if (!run.look[row])
    lines.push(
      note(
        state.size
          ? "As of the last look: none was taken at this exit."
          : "No look at its state was taken up to this exit.",
      ),
    );
  else if (!state.size) lines.push(note("Its state is as it was at power-on, or it keeps none."));
  const made = card("Device", ...lines);
  made.firstChild.append(el("span", { class: "tag", text: visible(name) }));
  return made;
}

function memoryCard(run, row) {
  if (run.type[row] !== ACCESS && run.type[row] !== EVENT) return null;
  const look = run.lookAt(row);
  if (!run.header.detailed) return null;
  if (!look) return card("Memory", note("No look at memory was taken at this exit."));
  if (!look.memory.length) return card("Memory", note("Nothing in RAM changed since the last look."));
  return card("Memory that changed", memoryTable(look.memory));
}

function consoleCard(run, row) {
  if (!run.printed.length) return null;
  const { pieces, cut } = run.console(row);
  const text = el("pre", {
    class: "console",
    tabindex: 0,
    role: "region",
    "aria-label": "What the guest has printed so far",
  });
  if (cut) text.append(el("span", { class: "zeros", text: "…" }));
  // Neighbours that look alike are one element: a page of single letters would be slow.
  const merged = [];
  for (const piece of pieces) {
    const kind = piece.here ? "here" : piece.undone ? "undone" : "";
    if (merged.length && merged.at(-1).kind === kind) merged.at(-1).text += piece.text;
    else merged.push({ kind, text: piece.text });
  }
  text.append(...merged.map((piece) => el("span", { class: piece.kind, text: visibleLines(piece.text) })));
  text.append(el("span", { class: "caret", "aria-hidden": "true" }));
  const undone = pieces.some((piece) => piece.undone);
  requestAnimationFrame(() => {
    text.scrollTop = text.scrollHeight;
  });
  return card(
    "Console so far",
    text,
    pieces.length ? null : note("Nothing is printed yet."),
    undone
      ? note("Struck through: printed, then undone. Output is not taken back; the guest does not know of it.")
      : null,
  );
}
