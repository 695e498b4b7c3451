// The head of the page and the chips: what was run, how long it took, how it ended; what is shown.

function facts(app) {
  const { runs, view } = app;
  $("facts").replaceChildren(
    ...runs.map((run) => {
      const { header } = run;
      const items = [];
      const item = (term, ...content) =>
        items.push(el("div", {}, el("dt", { text: term }), el("dd", {}, ...content)));
      item("CPU", visible(header.provenance || header.backend));
      if (!view.b && header.machine)
        item("machine", `${visible(header.machine)}${header.cpus > 1 ? `, ${header.cpus} vCPUs` : ""}`);
      if (!view.b && header.clock) item("clock", visible(header.clock));
      item("exits", number(run.accesses));
      if (run.restores.length) item("time travel", `${number(run.restores.length)} × back`);
      if (run.timed) {
        const share = Math.round((100 * run.guestTime) / (run.guestTime + run.vmmTime));
        const bar = el(
          "span",
          { class: "share", "aria-hidden": "true" },
          el("span", { class: "share-guest" }),
        );
        bar.firstChild.style.width = `${share}%`;
        item("guest / VMM time", `${duration(run.guestTime)} / ${duration(run.vmmTime)}`, bar);
      }
      if (run.end === null) item("end", el("span", { class: "warn", text: "cut short" }));
      else item("end", run.end.cut ? "limit of the trace" : visible(kindWords(run.end.kind)));
      const list = el("dl", {}, ...items);
      return view.b
        ? el("div", { class: "fact-run" }, el("span", { class: "side-letter", text: run.name }), list)
        : list;
    }),
  );
  if (view.b) {
    $("divergence").hidden = false;
    $("exits-title").textContent = "Exits, side by side";
    const verdict = el(
      "p",
      { class: `verdict ${view.first >= 0 ? "unlike" : "alike"}` },
      el("span", { text: `${view.first >= 0 ? "≠" : "="} ${app.data.compare.why}` }),
    );
    if (view.first >= 0)
      $("divergence").append(
        el("button", {
          type: "button",
          id: "to-first",
          "aria-keyshortcuts": "d",
          text: "Go to the first difference",
          on: { click: () => app.choose(view.first) },
        }),
      );
    document.querySelector(".exits .bar").after(verdict);
  }
  jumpButtons(app);
  legend(app);
}

const MOST_JUMPS = 60;

function jumpButtons(app) {
  const { view } = app;
  const places = view.jumps;
  if (!places.length) return;
  $("jumps").hidden = false;
  const buttons = places.slice(0, MOST_JUMPS).map((place) => {
    const [run, row] = view
      .at(place)
      .find(([run, row]) => run.type[row] === SNAPSHOT || run.type[row] === RESTORE);
    const back = run.type[row] === RESTORE;
    const text = back ? `↶ ${number(run.n[row])} → ${number(run.address[row])}` : `◆ ${number(run.n[row])}`;
    const words = back
      ? `Time goes back, from behind exit ${run.n[row]} to behind exit ${run.address[row]}`
      : `Snapshot ${run.size[row]} behind exit ${run.n[row]}`;
    return el("button", {
      type: "button",
      class: "jump-button",
      "aria-label": words,
      title: words,
      text,
      on: { click: () => app.choose(place) },
    });
  });
  const left = places.length - MOST_JUMPS;
  $("jumps").append(
    el("span", { class: "jumps-name", text: "Time travel" }),
    ...buttons,
    left > 0 ? el("span", { class: "note", text: `and ${number(left)} more, by the keys [ and ]` }) : "",
  );
}

function legend(app) {
  const items = [];
  const item = (kind, text) =>
    items.push(el("span", {}, el("i", { class: `swatch ${kind}`, "aria-hidden": "true" }), text));
  if (app.runs.some((run) => run.timed)) {
    item("guest", "guest time");
    item("vmm", "VMM time");
  }
  if (app.runs.some((run) => run.jumps.length)) {
    item("diamond", "snapshot");
  }
  if (app.runs.some((run) => run.restores.length)) {
    item("arc", "back in time");
    item("hatched", "undone");
  }
  $("legend").replaceChildren(...items);
}

const MOST_CHIPS = 24;

/** The chips that hide and show kinds and devices. */
function chips(app) {
  const { view } = app;
  const { kinds, devices } = (app.counts ??= view.counts());
  const fill = (place, counts, hidden, words, kindOf) => {
    const names = [...counts.keys()].slice(0, MOST_CHIPS);
    const focused = place.contains(document.activeElement)
      ? [...place.children].indexOf(document.activeElement)
      : -1;
    const set = (change) => {
      change();
      app.refresh();
      app.list.select(app.place);
    };
    place.replaceChildren(
      ...names.map((name) =>
        el(
          "button",
          {
            type: "button",
            class: "chip",
            "aria-pressed": String(!hidden.has(name)),
            title: "Shift: only this one",
            on: {
              click: (event) =>
                set(() => {
                  if (event.shiftKey) {
                    for (const other of counts.keys()) hidden.add(other);
                    hidden.delete(name);
                  } else if (!hidden.delete(name)) hidden.add(name);
                }),
            },
          },
          kindOf ? el("i", { class: `swatch ${kindClass(name)}`, "aria-hidden": "true" }) : null,
          el("span", { class: "chip-name", text: words(name) }),
          el("span", { class: "chip-count", text: number(counts.get(name)) }),
        ),
      ),
      hidden.size
        ? el("button", {
            type: "button",
            class: "chip all",
            text: "show all",
            on: { click: () => set(() => hidden.clear()) },
          })
        : "",
    );
    if (focused >= 0) place.children[Math.min(focused, place.children.length - 1)]?.focus();
  };
  fill($("kinds"), kinds, view.hiddenKinds, (name) => visible(kindWords(name)), true);
  const detailed = app.runs.some((run) => run.header.detailed);
  $("devices").hidden = !detailed || devices.size < 2;
  if (detailed) fill($("devices"), devices, view.hiddenDevices, (name) => visible(name) || "nobody", false);
}
