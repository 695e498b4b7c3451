// Code around an exit, and bytes of memory, as tables that scroll by themselves where they are too wide.

/** A block that may be wider than its place: it can be reached and scrolled by keys. */
const wide = (label, content) =>
  el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": label }, content);

/** The instructions around the row's exit, or null. */
function codeTable(run, row) {
  const code = run.codes[run.code[row] - 1];
  if (!code) return null;
  const [here, lines] = code;
  const digits = Math.max(4, ...lines.map((line) => line[0].length));
  const rows = lines.map(([linear, bytes, text]) => {
    const mark = linear === here;
    const [name, ...rest] = visible(text).split(" ");
    return el(
      "tr",
      { class: mark ? "here" : null, "aria-current": mark ? "true" : null },
      el(
        "td",
        { class: "mark" },
        mark ? el("span", { text: "▶", role: "img", "aria-label": "this exit's instruction" }) : "",
      ),
      el("td", { class: "address", text: linear.padStart(digits, "0") }),
      el("td", { class: "text" }, el("b", { text: name }), rest.length ? ` ${rest.join(" ")}` : ""),
      el("td", { class: "bytes", text: bytes }),
    );
  });
  return wide("Code", el("table", { class: "code" }, el("tbody", {}, ...rows)));
}

const MOST_CHANGES = 40;

/** What changed in memory: each place with the old bytes above the new ones. */
function memoryTable(changes) {
  const digits = Math.max(4, ...changes.map(([gpa]) => gpa.length));
  const rows = [];
  for (const [gpa, size, old, fresh] of changes.slice(0, MOST_CHANGES)) {
    const length = Math.max(old.length, fresh.length) / 2;
    for (let at = 0; at < length; at += 16) {
      const address = (BigInt("0x" + gpa) + BigInt(at)).toString(16).padStart(digits, "0");
      const slice = (digits) => digits.slice(2 * at, 2 * at + 32).match(/../g) ?? [];
      const before = slice(old),
        after = slice(fresh);
      const line = (bytes, other, sign, name, kind) =>
        el(
          "tr",
          { class: kind },
          el("td", { class: "address", text: kind === "old" ? address : "" }),
          el("td", { class: "sign" }, el("span", { text: sign, role: "img", "aria-label": name })),
          el(
            "td",
            { class: "hex" },
            ...bytes.map((byte, index) =>
              el("span", { class: byte !== other[index] ? "changed" : null, text: byte }),
            ),
          ),
          el("td", {
            class: "ascii",
            text: bytes
              .map((byte) => {
                const code = parseInt(byte, 16);
                return code >= 0x20 && code < 0x7f ? String.fromCharCode(code) : "·";
              })
              .join(""),
          }),
        );
      rows.push(line(before, after, "−", "before", "old"), line(after, before, "+", "after", "new"));
    }
    if (size > length)
      rows.push(
        el(
          "tr",
          { class: "more" },
          el("td"),
          el("td"),
          el("td", {
            colspan: 2,
            text: `… ${plural(size - length, "more byte")} that the trace does not keep`,
          }),
        ),
      );
  }
  const left = changes.length - MOST_CHANGES;
  return wide(
    "Memory that changed",
    el(
      "div",
      {},
      el("table", { class: "memory" }, el("tbody", {}, ...rows)),
      left > 0 ? el("p", { class: "note", text: `and ${plural(left, "more place")}` }) : null,
    ),
  );
}
