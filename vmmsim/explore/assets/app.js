// Puts the page together: one selection, which list, timeline, details and address bar follow.

class App {
  constructor(data) {
    this.runs = data.runs.map(
      (run, side) => new Run({ ...run, kvm: data.kvm }, data.runs.length > 1 ? "AB"[side] : ""),
    );
    this.data = data;
    this.view = new View(this.runs, data.compare);
    this.place = -1;
    const asked = readHash(this.view);
    const choose = (place, step = 0) => this.choose(step ? this.#step(place, step) : place);
    $("title").textContent = visible(data.title);
    $("app").hidden = false;
    facts(this);
    this.details = new Details(this.view, choose);
    this.list = new List(this.view, choose);
    this.timeline = new Timeline(this.view, choose);
    themeButton(() => this.timeline.later());
    this.#controls();
    this.#take(asked);
    addEventListener("hashchange", () => {
      if (location.hash !== writeHash.own) this.#take(readHash(this.view));
    });
    keys(this);
  }

  /** Bring the page to a state that was asked for in the address bar. */
  #take(asked) {
    this.view.hiddenKinds = asked.kinds;
    this.view.hiddenDevices = asked.devices;
    this.view.only = $("only").checked = asked.only && asked.query !== "";
    $("q").value = asked.query;
    $("lanes").value = this.timeline.by = asked.lanes;
    const axis = this.view.b || !this.runs[0].timed ? "row" : asked.axis;
    $("axis").value = axis;
    this.timeline.arrange();
    if (axis !== this.timeline.axis) this.timeline.setAxis(axis);
    this.search(asked.query);
    const start = this.view.first >= 0 ? this.view.first : (this.view.rows[0] ?? -1);
    this.choose(asked.place >= 0 ? asked.place : start, true);
  }

  choose(place, center = true) {
    if (place < 0 && this.view.length) return;
    this.place = place;
    this.details.show(place);
    this.list.select(place, { center });
    this.timeline.select(place);
    this.remember();
  }

  remember() {
    clearTimeout(this.writing);
    this.writing = setTimeout(() => writeHash(this.view, this.place, this.timeline), 80);
  }

  /** The place so many shown rows further on. */
  #step(place, step) {
    const rows = this.view.rows;
    if (!rows.length) return -1;
    const at = this.view.indexOf(place);
    const here = rows[at] === place;
    const index = Math.max(0, Math.min(rows.length - 1, at + (here || step < 0 ? step : step - 1)));
    return rows[index];
  }
  move(step) {
    this.choose(this.#step(this.place, step), false);
  }

  /** To the next or previous of some places, and say so. */
  jump(places, step, what) {
    const place = this.view.neighbour(places, this.place, step);
    if (place < 0) return say(`There is no ${what}.`);
    this.choose(place);
    return undefined;
  }

  search(text) {
    const box = $("q");
    try {
      this.view.setQuery(text);
      box.removeAttribute("aria-invalid");
      const count = this.view.matches.length;
      $("matches").textContent = text.trim() ? plural(count, "match", "matches") : "";
    } catch (error) {
      if (!(error instanceof QueryError)) throw error;
      box.setAttribute("aria-invalid", "true");
      $("matches").textContent = error.message;
    }
    this.refresh();
  }

  refresh() {
    this.view.refresh();
    this.list.measure();
    this.timeline.later();
    $("count").textContent =
      this.view.rows.length === this.view.length
        ? plural(this.view.length, "row")
        : `${number(this.view.rows.length)} of ${plural(this.view.length, "row")}`;
    chips(this);
    this.remember();
  }

  #controls() {
    let typing;
    $("q").addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => this.search($("q").value), 120);
    });
    $("search").addEventListener("submit", (event) => {
      event.preventDefault();
      clearTimeout(typing);
      this.search($("q").value);
      this.jump(this.view.matches, 1, "match");
    });
    $("next").addEventListener("click", () => this.jump(this.view.matches, 1, "match"));
    $("previous").addEventListener("click", () => this.jump(this.view.matches, -1, "match"));
    $("only").addEventListener("change", () => {
      this.view.only = $("only").checked;
      this.refresh();
      this.list.select(this.place);
    });
    $("lanes").addEventListener("change", () => {
      this.timeline.by = $("lanes").value;
      this.timeline.arrange();
      this.remember();
    });
    $("axis").addEventListener("change", () => {
      this.timeline.setAxis($("axis").value);
      this.remember();
    });
    if (this.view.b || !this.runs[0].timed) $("axis").disabled = true;
    if (!this.runs.some((run) => run.header.detailed)) $("lanes").disabled = true;
    $("skip").addEventListener("click", (event) => {
      event.preventDefault();
      $("grid").focus();
    });
    const again = matchMedia(`(resolution: ${devicePixelRatio}dppx)`);
    again.addEventListener("change", () => {
      this.list.measure();
      this.timeline.later();
    });
  }
}

async function begin() {
  try {
    const app = new App(await unpack());
    performance.mark("vmmsim-interactive");
    requestAnimationFrame(() => {
      document.documentElement.dataset.ready = "yes";
    });
    return app;
  } catch (error) {
    $("failed").hidden = false;
    $("failed").textContent = `The page could not be shown. ${error.message}`;
    throw error;
  }
}

begin();
