// The timeline: what is shown of it (a window), and what mouse and keys do to it. `draw.js` paints it.

const MOST_LANES = 10;
const LEAST_WINDOW = 8; // places, the closest look

class Timeline {
  constructor(view, choose) {
    this.view = view;
    this.choose = choose;
    this.canvas = $("canvas");
    this.stage = $("stage");
    this.axis = "row";
    this.by = "kind";
    this.selected = -1;
    this.brush = null;
    this.fit();
    this.arrange();
    new ResizeObserver(() => this.later()).observe(this.stage);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.later());
    this.#listen();
    this.#describe();
  }

  /** The lanes of each run: [{run, side, lanes: [name], laneOf: strings' lanes}]. */
  arrange() {
    this.blocks = this.view.runs.map((run, side) => {
      const column = this.by === "kind" ? run.kind : run.device;
      const counts = new Map();
      for (let row = 0; row < run.length; row++) {
        if (run.type[row] === SNAPSHOT || run.type[row] === RESTORE || run.type[row] === END) continue;
        const key = this.by === "device" && run.type[row] === EVENT ? -1 : column[row];
        counts.set(key, (counts.get(key) || 0) + 1);
      }
      const keys = [...counts.keys()];
      if (keys.length > MOST_LANES) keys.sort((x, y) => counts.get(y) - counts.get(x));
      const kept = keys.slice(0, keys.length > MOST_LANES ? MOST_LANES - 1 : MOST_LANES);
      const lanes = kept.map((key) =>
        key < 0
          ? "events"
          : this.by === "kind"
            ? kindWords(run.strings[key])
            : run.strings[key] || (run.header.detailed ? "nobody" : "all devices"),
      );
      const laneOf = new Int16Array(run.strings.length).fill(kept.length);
      kept.forEach((key, lane) => {
        if (key >= 0) laneOf[key] = lane;
      });
      if (keys.length > kept.length) lanes.push(`${keys.length - kept.length} others`);
      return { run, side, lanes: lanes.map(visible), column, laneOf, events: kept.indexOf(-1) };
    });
    this.later();
  }

  get total() {
    return this.axis === "time" ? this.view.runs[0].before.at(-1) : this.view.length;
  }
  get least() {
    return this.axis === "time" ? this.total / Math.max(1, this.view.length / LEAST_WINDOW) : LEAST_WINDOW;
  }

  fit() {
    this.from = 0;
    this.to = Math.max(this.total, this.axis === "time" ? 1 : LEAST_WINDOW);
    this.later();
  }

  setAxis(axis) {
    this.axis = axis;
    this.fit();
  }

  /** Where a place lies on the axis: [from, to]. */
  span(place, side = 0) {
    if (this.axis === "row") return [place, place + 1];
    const run = this.view.runs[side],
      row = this.view.a[place];
    return [run.before[row], run.before[row + 1]];
  }

  zoom(factor, around = null) {
    const chosen = this.selected >= 0 ? this.span(this.selected)[0] : (this.from + this.to) / 2;
    const middle = around ?? (chosen >= this.from && chosen <= this.to ? chosen : (this.from + this.to) / 2);
    const width = Math.min(
      Math.max((this.to - this.from) * factor, this.least),
      Math.max(this.total, this.least),
    );
    const share = (middle - this.from) / (this.to - this.from);
    this.show(middle - share * width, middle + (1 - share) * width);
  }

  /** Show a window of the axis, moved to where there is something. */
  show(from, to) {
    const width = Math.max(to - from, this.least);
    this.from = Math.max(0, Math.min(from, this.total - width));
    this.to = this.from + width;
    this.later();
  }

  select(place) {
    this.selected = place;
    if (place >= 0) {
      const [from, to] = this.span(place);
      const width = this.to - this.from;
      if (from < this.from || to > this.to) this.show(from - width / 2, from + width / 2);
      const canvas = this.canvas,
        [run, row] = this.view.at(place)[0];
      const text = rowText(run, row);
      canvas.setAttribute("aria-valuemin", 1);
      canvas.setAttribute("aria-valuemax", this.view.length);
      canvas.setAttribute("aria-valuenow", place + 1);
      canvas.setAttribute(
        "aria-valuetext",
        `${run.type[row] === ACCESS ? `exit ${run.n[row]}: ` : ""}${text.kind} ${text.where} ${text.value}`,
      );
    }
    this.later();
  }

  later() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = undefined;
      paint(this);
      this.#range();
    });
  }

  /** The bar below that shows which part of the run is in the window. */
  #range() {
    const whole = this.to - this.from >= this.total;
    $("range").hidden = whole;
    $("thumb").style.left = `${(100 * this.from) / this.total}%`;
    $("thumb").style.width = `${Math.max(1, (100 * (this.to - this.from)) / this.total)}%`;
  }

  position(event) {
    return event.clientX - this.canvas.getBoundingClientRect().left;
  }
  toAxis(x) {
    return this.from + ((x - this.left) / (this.width - this.left)) * (this.to - this.from);
  }
  toX(value) {
    return this.left + ((value - this.from) / (this.to - this.from)) * (this.width - this.left);
  }

  /** The place at a value of the axis. */
  placeAt(value) {
    if (this.axis === "row") return Math.min(this.view.length - 1, Math.max(0, Math.floor(value)));
    return Math.min(
      this.view.length - 1,
      Math.max(0, lowerBound(this.view.runs[0].before, value + 1e-9) - 1),
    );
  }

  /** The place that is meant by a point: a jump's arc or mark, or the nearest row in the lane below it. */
  hit(x, y) {
    if (x < this.left || !this.view.length) return -1;
    const mark = this.marks?.find((mark) => Math.abs(mark.x - x) <= 7 && Math.abs(mark.y - y) <= 9);
    if (mark) return mark.place;
    const place = this.placeAt(this.toAxis(x));
    const block = this.blocks.find((each) => y >= each.top && y < each.bottom) ?? this.blocks[0];
    const lane = Math.floor((y - block.lanesTop) / block.laneHeight);
    const reach = Math.ceil((6 / (this.width - this.left)) * (this.to - this.from)) + 1;
    if (lane < 0 || lane >= block.lanes.length || this.axis === "time") return place;
    for (let off = 0; off <= Math.min(reach, 5000); off++) {
      for (const near of [place - off, place + off]) {
        const row = (block.side ? this.view.b : this.view.a)[near];
        if (row >= 0 && laneOf(block, row) === lane) return near;
      }
    }
    return place;
  }

  #listen() {
    const canvas = this.canvas;
    canvas.addEventListener(
      "wheel",
      (event) => {
        const across = Math.abs(event.deltaX) > Math.abs(event.deltaY);
        // Where the page itself scrolls, a plain wheel is the page's.
        if (!across && !event.ctrlKey && document.documentElement.scrollHeight > innerHeight + 4) return;
        event.preventDefault();
        if (across || event.shiftKey) {
          const move = ((event.deltaX || event.deltaY) / this.width) * (this.to - this.from);
          this.show(this.from + move, this.to + move);
        } else
          this.zoom(Math.exp(event.deltaY * 0.0015), this.toAxis(Math.max(this.left, this.position(event))));
      },
      { passive: false },
    );
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      canvas.setPointerCapture(event.pointerId);
      this.brush = {
        from: this.position(event),
        to: this.position(event),
        pan: event.shiftKey,
        window: [this.from, this.to],
      };
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.brush) return this.#tip(event);
      this.brush.to = this.position(event);
      if (this.brush.pan) {
        const move =
          ((this.brush.from - this.brush.to) / (this.width - this.left)) *
          (this.brush.window[1] - this.brush.window[0]);
        this.show(this.brush.window[0] + move, this.brush.window[1] + move);
      }
      this.later();
    });
    canvas.addEventListener("pointerup", (event) => {
      const brush = this.brush;
      this.brush = null;
      this.later();
      if (!brush || brush.pan) return;
      if (Math.abs(brush.to - brush.from) < 5) {
        const box = canvas.getBoundingClientRect();
        const place = this.hit(event.clientX - box.left, event.clientY - box.top);
        if (place >= 0) this.choose(place);
      } else {
        const ends = [brush.from, brush.to]
          .map((x) => this.toAxis(Math.max(this.left, x)))
          .sort((x, y) => x - y);
        this.show(...ends);
      }
    });
    canvas.addEventListener("pointercancel", () => {
      this.brush = null;
      this.later();
    });
    canvas.addEventListener("pointerleave", () => {
      $("tip").hidden = true;
    });
    canvas.addEventListener("dblclick", () => this.fit());
    $("zoom-in").addEventListener("click", () => this.zoom(0.5));
    $("zoom-out").addEventListener("click", () => this.zoom(2));
    $("zoom-fit").addEventListener("click", () => this.fit());
    const range = $("range");
    const drag = (event) => {
      const box = range.getBoundingClientRect(),
        width = this.to - this.from;
      const middle = ((event.clientX - box.left) / box.width) * this.total;
      this.show(middle - width / 2, middle + width / 2);
    };
    range.addEventListener("pointerdown", (event) => {
      range.setPointerCapture(event.pointerId);
      drag(event);
    });
    range.addEventListener("pointermove", (event) => {
      if (range.hasPointerCapture(event.pointerId)) drag(event);
    });
  }

  #tip(event) {
    const tip = $("tip");
    const box = this.canvas.getBoundingClientRect();
    const x = event.clientX - box.left,
      y = event.clientY - box.top;
    const place = this.hit(x, y);
    tip.hidden = place < 0;
    if (place < 0) return;
    tip.replaceChildren(
      ...this.view.at(place).map(([run, row]) => {
        const text = rowText(run, row);
        const head = [
          this.view.b ? run.name : "",
          run.type[row] === ACCESS ? `#${number(run.n[row])}` : "",
          text.kind,
        ]
          .filter(Boolean)
          .join(" ");
        const lines = [
          el("strong", { text: head }),
          el("span", { text: `${text.where} ${text.value}`.trim() }),
        ];
        if (run.timed)
          lines.push(
            el("span", {
              class: "muted",
              text: `guest ${duration(run.guest[row])}, VMM ${duration(run.vmm[row])}`,
            }),
          );
        if (run.undone[row])
          lines.push(el("span", { class: "muted", text: "undone: time went back behind it" }));
        return el("div", {}, ...lines);
      }),
    );
    const room = this.stage.clientWidth - tip.offsetWidth - 4;
    tip.style.left = `${Math.max(4, Math.min(x + 14, room))}px`;
    tip.style.top = `${y + 16}px`;
  }

  /** The timeline in words. */
  #describe() {
    $("time-text").textContent = this.view.runs
      .map((run) => {
        const counts = new Map();
        for (let row = 0; row < run.length; row++)
          counts.set(run.kindName(row), (counts.get(run.kindName(row)) || 0) + 1);
        const kinds = [...counts]
          .map(([name, count]) => `${number(count)} ${visible(kindWords(name))}`)
          .join(", ");
        const back = run.restores
          .slice(0, 50)
          .map((row) => `behind exit ${run.n[row]} time went back to behind exit ${run.address[row]}`)
          .join("; ");
        const time = run.timed
          ? ` The guest ran ${duration(run.guestTime)}, the VMM ${duration(run.vmmTime)}.`
          : "";
        return `${this.view.b ? `Run ${run.name}: ` : ""}${plural(run.accesses, "exit")}: ${kinds}.${time}${back ? ` Time travel: ${back}.` : ""}`;
      })
      .join(" ");
  }
}

/** In which lane of its block a row is, or -1. */
function laneOf(block, row) {
  const type = block.run.type[row];
  if (type === SNAPSHOT || type === RESTORE || type === END) return -1;
  return block.events >= 0 && type === EVENT ? block.events : block.laneOf[block.column[row]];
}
