// The list of exits: of all rows only those in sight are elements, and those are used again and again.

const ARROWS = { read: "←", write: "→" };
const MOST_PIXELS = 12e6; // browsers cannot lay out elements that are much higher

/** Words for a row's kind: `port write`. */
const kindWords = (name) => name.replaceAll("_", " ");
/** Which colour a kind has: the class of it. */
const kindClass = (name) =>
  /^(port|mmio|msr)_(read|write)$/.test(name)
    ? name.replace("_", "-")
    : ["snapshot", "restore"].includes(name)
      ? "jump"
      : "event";

class List {
  constructor(view, choose) {
    this.view = view;
    this.choose = choose;
    this.grid = $("grid");
    this.rows = $("rows");
    this.pool = [];
    this.selected = -1;
    this.#head();
    this.grid.addEventListener("scroll", () => this.#later(), { passive: true });
    this.rows.addEventListener("click", (event) => {
      const row = event.target.closest("[data-place]");
      if (row) this.choose(Number(row.dataset.place));
    });
    new ResizeObserver(() => {
      const before = this.height;
      this.measure();
      if (this.height !== before) this.select(this.selected, { center: true });
    }).observe(this.grid);
  }

  #head() {
    const names = this.view.b ? ["#", "A", "", "B"] : ["#", "kind", "where", "value", "instruction"];
    const labels = { "": "same?" };
    this.grid.classList.toggle("two", Boolean(this.view.b));
    if (!this.view.runs[0].codes.length) this.grid.classList.add("no-code");
    $("grid-head").replaceChildren(
      ...names.map((name) => el("span", { role: "columnheader", text: name, "aria-label": labels[name] })),
    );
    this.grid.setAttribute("aria-colcount", names.length);
  }

  /** After a change of what is shown, or of the size of letters. */
  measure() {
    const probe = el("div", { class: "row" }, el("span", { text: "0" }));
    this.rows.append(probe);
    this.height = probe.getBoundingClientRect().height || 28;
    probe.remove();
    this.sight = Math.max(1, Math.ceil(this.grid.clientHeight / this.height) + 1);
    const total = this.view.rows.length * this.height;
    this.pixels = Math.min(total, MOST_PIXELS);
    this.rows.style.height = `${this.pixels}px`;
    this.grid.setAttribute("aria-rowcount", this.view.rows.length + 1);
    this.draw();
  }

  #later() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = undefined;
      this.draw();
    });
  }

  /** The index of the first row in sight, from where the list is scrolled to, and back. */
  get #first() {
    const room = this.pixels - this.#space;
    if (room <= 0) return 0;
    return (
      (Math.min(1, this.grid.scrollTop / room) * (this.view.rows.length * this.height - this.#space)) /
      this.height
    );
  }
  get #space() {
    return this.grid.clientHeight - $("grid-head").offsetHeight;
  }

  draw() {
    const first = Math.max(0, Math.floor(this.#first) - 2);
    const last = Math.min(this.view.rows.length, first + this.sight + 4);
    const shift = this.grid.scrollTop - this.#first * this.height;
    while (this.pool.length < last - first) {
      const row = this.#blank();
      this.pool.push(row);
      this.rows.append(row.element);
    }
    this.pool.forEach((row, at) => {
      const index = first + at;
      row.element.hidden = index >= last;
      if (index >= last) return;
      row.element.style.transform = `translateY(${index * this.height + shift}px)`;
      this.#fill(row, index);
    });
    this.grid.setAttribute("aria-activedescendant", this.selected >= 0 ? `row-${this.selected}` : "");
    if (!this.view.rows.length)
      this.grid.dataset.empty = this.view.length
        ? "No exit fits the search and the filters."
        : "The run made no exits.";
    else delete this.grid.dataset.empty;
  }

  #blank() {
    const cell = (name) => el("span", { class: name, role: "gridcell" });
    const cells = this.view.b
      ? ["number", "side", "same", "side"].map(cell)
      : ["number", "kind", "where", "value", "code"].map(cell);
    return { element: el("div", { class: "row", role: "row" }, ...cells), cells };
  }

  #fill({ element, cells }, index) {
    const view = this.view,
      place = view.rows[index];
    const [run, row] = view.at(place)[0];
    element.dataset.place = place;
    element.id = `row-${place}`;
    element.setAttribute("aria-rowindex", index + 2);
    element.setAttribute("aria-selected", place === this.selected);
    const classes = ["row"];
    if (place === this.selected) classes.push("selected");
    if (view.matched[place]) classes.push("match");
    if (!view.b && run.undone[row]) classes.push("undone");
    if (view.different[place]) classes.push("different");
    if (place === view.first) classes.push("first");
    if (run.type[row] !== ACCESS) classes.push("jump-row");
    if (index % 2) classes.push("odd");
    element.className = classes.join(" ");
    cells[0].textContent = run.type[row] === ACCESS ? number(run.n[row]) : "";
    if (view.b) {
      this.#side(cells[1], view.runs[0], view.a[place]);
      cells[2].textContent = view.different[place] ? "≠" : "=";
      cells[2].setAttribute(
        "aria-label",
        place === view.first ? "first difference" : view.different[place] ? "different" : "the same",
      );
      this.#side(cells[3], view.runs[1], view.b[place]);
      return;
    }
    const text = rowText(run, row);
    cells[1].className = `kind ${kindClass(run.kindName(row))}`;
    cells[1].textContent = text.kind;
    cells[2].textContent = text.where;
    cells[2].title = text.where;
    cells[3].textContent = text.value;
    cells[4].textContent = text.code;
    cells[4].title = text.code;
    if (run.undone[row]) cells[0].title = "undone: time went back behind it";
    else cells[0].removeAttribute("title");
  }

  #side(cell, run, row) {
    if (row < 0) {
      cell.className = "side none";
      cell.textContent = "nothing";
      return;
    }
    const text = rowText(run, row);
    cell.className = `side kind ${kindClass(run.kindName(row))}`;
    cell.replaceChildren(
      el("span", { class: "what", text: text.kind }),
      el("span", { class: "value", text: text.value }),
      el("span", { class: "where", text: text.where }),
    );
    cell.title = `${text.kind} ${text.where} ${text.value}`;
  }

  /** Mark a place, and scroll to it unless it is in sight. */
  select(place, { center = false } = {}) {
    this.selected = place;
    const index = this.view.indexOf(place);
    const first = this.#first,
      sight = this.#space / this.height;
    let want = null;
    if (center && (index < first || index + 1 > first + sight)) want = index - sight / 2 + 0.5;
    else if (index < first) want = index;
    else if (index + 1 > first + sight) want = index + 1 - sight;
    if (want !== null) {
      const all = this.view.rows.length * this.height - this.#space;
      const room = this.pixels - this.#space;
      this.grid.scrollTop = all > 0 ? (Math.max(0, want * this.height) / all) * room : 0;
    }
    this.draw();
  }

  /** How many rows a page is. */
  get page() {
    return Math.max(1, Math.floor(this.#space / this.height) - 1);
  }
}

/** A row's cells as text. */
function rowText(run, row) {
  const name = run.kindName(row);
  const type = run.type[row];
  if (type === SNAPSHOT)
    return {
      kind: "◆ snapshot",
      where: [`no. ${run.size[row]}`, visible(run.strings[run.text[row]])].filter(Boolean).join(" · "),
      value: "",
      code: "",
    };
  if (type === RESTORE)
    return {
      kind: "↶ back in time",
      where: `to behind exit ${number(run.address[row])}`,
      value: "",
      code: "",
    };
  if (type === END)
    return {
      kind: "■ end",
      where: visible(run.strings[run.text[row]]),
      value: "",
      code: "",
    };
  if (type === EVENT)
    return {
      kind: `● ${visible(kindWords(name))}`,
      where: visible(run.strings[run.text[row]]),
      value: "",
      code: visible(run.instruction(row)),
    };
  const digits = run.valueDigits(row),
    size = run.size[row];
  const device = visible(run.deviceName(row));
  const register = visible(run.strings[run.register[row]]);
  const place = hex(run.address[row].toString(16), name.startsWith("port") ? 4 : 0);
  const who = device ? (register ? `${device} ${register}` : device) : run.header.detailed ? "nobody" : "";
  return {
    kind: `${ARROWS[name.split("_")[1]] ?? ""} ${kindWords(name)}`,
    where: who ? `${place} ${who}` : place,
    value: `${hex(digits, size * 2)} ${letter(digits, size)}`.trim(),
    code: visible(run.instruction(row)),
  };
}
