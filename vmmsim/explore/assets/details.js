// The selected exit in full: what it was, what followed, and its cards.

class Details {
  constructor(view, choose) {
    this.view = view;
    this.choose = choose;
    this.place = $("details");
  }

  /** Show a place. Who steps by a button here finds it again: its successor has the focus. */
  show(place) {
    const within = this.place.contains(document.activeElement) && document.activeElement !== this.place;
    const label = within ? document.activeElement.getAttribute("aria-label") : null;
    const alike = () =>
      [...this.place.querySelectorAll("[aria-label]")].filter((each) => each.ariaLabel === label);
    const index = label ? alike().indexOf(document.activeElement) : 0;
    this.#render(place);
    if (within) ((label && alike()[index]) || this.place).focus({ preventScroll: true });
  }

  #render(place) {
    const view = this.view;
    if (place < 0) {
      this.place.replaceChildren(
        el("p", { class: "note", text: "Nothing to show: the trace has no exits." }),
        ...this.#plain(view.runs[0]),
      );
      return;
    }
    if (!view.b) {
      const run = view.runs[0],
        row = view.a[place];
      this.place.replaceChildren(
        el(
          "div",
          { class: "columns" },
          el(
            "div",
            { class: "stack" },
            this.#summary(run, row, place),
            this.#code(run, row),
            deviceCard(run, row),
          ),
          el(
            "div",
            { class: "stack" },
            registersCard(run, row),
            memoryCard(run, row),
            consoleCard(run, row),
            ...this.#plain(run),
          ),
        ),
      );
      return;
    }
    const sides = [view.a[place], view.b[place]];
    this.place.replaceChildren(
      el(
        "div",
        { class: "columns pair" },
        ...view.runs.map((run, side) => {
          const row = sides[side],
            other = view.runs[1 - side],
            otherRow = sides[1 - side];
          const name = el(
            "h2",
            { class: "side-name" },
            el("span", { class: "side-letter", text: run.name }),
            ` ${visible(run.header.provenance || run.header.backend)}`,
          );
          if (row < 0)
            return el(
              "div",
              { class: "stack" },
              name,
              card("Nothing", note("This run has no such exit here.")),
            );
          return el(
            "div",
            { class: "stack" },
            name,
            this.#summary(run, row, place),
            ...this.#plain(run),
            registersCard(run, row, other, otherRow),
            this.#code(run, row),
            deviceCard(run, row),
            memoryCard(run, row),
            consoleCard(run, row),
          );
        }),
      ),
    );
    if (sides.every((row) => row >= 0)) markUnlike(...this.place.querySelectorAll(".stack"));
  }

  #plain(run) {
    if (run.header.detailed) return [];
    return [
      el(
        "section",
        { class: "card hint" },
        el("h3", { text: "A plain trace" }),
        el(
          "p",
          {},
          "It has the accesses only. For registers, code, times, devices and memory record the run with ",
          el("code", { text: "vmmsim trace GUEST -o FILE.html" }),
          ".",
        ),
      ),
    ];
  }

  #code(run, row) {
    const table = codeTable(run, row);
    if (table) return card("Code", table);
    if ((run.type[row] !== ACCESS && run.type[row] !== EVENT) || !run.header.detailed) return null;
    return card("Code", note("The instruction is not known: better none than a guess."));
  }

  #summary(run, row, place) {
    const name = run.kindName(row),
      type = run.type[row];
    const text = rowText(run, row);
    const title = type === ACCESS ? `#${number(run.n[row])}` : "";
    const head = el(
      "div",
      { class: "exit-head" },
      el(
        "h2",
        {},
        title ? el("span", { class: "exit-number", text: title }) : null,
        title ? " " : null,
        el("span", { class: `kind ${kindClass(name)}`, text: text.kind }),
      ),
      el(
        "span",
        { class: "joined" },
        el("button", {
          type: "button",
          "aria-label": "Previous exit",
          text: "◀",
          on: { click: () => this.choose(place, -1) },
        }),
        el("button", {
          type: "button",
          "aria-label": "Next exit",
          text: "▶",
          on: { click: () => this.choose(place, 1) },
        }),
      ),
    );
    const facts = [];
    const fact = (term, ...content) =>
      facts.push(el("div", {}, el("dt", { text: term }), el("dd", {}, ...content)));
    if (type === ACCESS) {
      const digits = run.valueDigits(row);
      const value = `${hex(digits, run.size[row] * 2)} ${letter(digits, run.size[row])}`.trim();
      fact(
        name.endsWith("write") ? "value written" : "value answered",
        el("span", { class: "mono big", text: value }),
      );
      fact(
        name.startsWith("port") ? "port" : name.startsWith("msr") ? "MSR" : "guest-physical",
        el("span", {
          class: "mono",
          text: hex(run.address[row].toString(16), name.startsWith("port") ? 4 : 0),
        }),
        `, ${plural(run.size[row], "byte")}`,
      );
      if (run.header.detailed)
        fact(
          "answered by",
          visible(run.deviceName(row)) || "nobody",
          run.register[row]
            ? el("span", { class: "tag", text: visible(run.strings[run.register[row]]) })
            : null,
        );
    }
    if (run.text[row])
      fact({ [EVENT]: "detail", [END]: "ended with" }[type] ?? "label", visible(run.strings[run.text[row]]));
    if (run.kvm[name]) fact("KVM's name", el("span", { class: "mono", text: run.kvm[name] }));
    if (run.rip[row] >= 0)
      fact(
        "RIP",
        el("span", { class: "mono", text: hex(run.values[run.rip[row]]) }),
        type === ACCESS
          ? el("span", {
              class: "aside",
              text: name.endsWith("read")
                ? "at the instruction, which waits for its answer"
                : "behind the instruction",
            })
          : null,
      );
    if (run.header.cpus > 1 && (type === ACCESS || type === EVENT)) fact("vCPU", String(run.cpu[row]));
    if (run.timed && (type === ACCESS || type === EVENT)) {
      fact("time", `the guest ran ${duration(run.guest[row])}, the VMM took ${duration(run.vmm[row])}`);
    }
    if (run.output[row])
      fact("printed", el("span", { class: "mono", text: `"${visible(run.strings[run.output[row]])}"` }));
    return el(
      "section",
      { class: "card summary" },
      head,
      this.#sentence(run, row),
      el("dl", { class: "fact-list" }, ...facts),
      this.#then(run, row),
      this.#undone(run, row),
    );
  }

  #sentence(run, row) {
    const type = run.type[row];
    if (type === RESTORE) {
      const undone = run.type
        .subarray(Math.max(0, run.target[row] + 1), row)
        .reduce((sum, each) => sum + (each === ACCESS ? 1 : 0), 0);
      const target = run.target[row];
      return el(
        "p",
        { class: "sentence" },
        run.size[row]
          ? `The machine went back to snapshot ${run.size[row]}, taken behind exit ${number(run.address[row])}. `
          : "The machine went to a snapshot that was taken before this trace began. ",
        `${plural(undone, "exit")} between them ${undone === 1 ? "is" : "are"} undone: registers, memory and devices are as they were then. `,
        target >= 0 ? this.#link(run, target, "Go to the snapshot") : null,
      );
    }
    if (type === SNAPSHOT) {
      const back = run.restores.filter((each) => run.target[each] === row);
      return el(
        "p",
        { class: "sentence" },
        `The machine was kept as it stands behind exit ${number(run.n[row])}. `,
        back.length
          ? `Time went back to here ${back.length === 1 ? "once" : `${number(back.length)} times`}. `
          : "Time never went back to here.",
        back.length
          ? this.#link(run, back[0], back.length === 1 ? "Go to the jump" : "Go to the first jump")
          : null,
      );
    }
    if (type === END)
      return el("p", {
        class: "sentence",
        text: run.end?.cut
          ? "The trace's limit was reached; the run went on behind it."
          : "The run ended here.",
      });
    return null;
  }

  /** What the VMM did next. */
  #then(run, row) {
    if (run.type[row] === END) return null;
    const items = [];
    if (run.then[row]) items.push(el("li", { text: visible(run.strings[run.then[row]]) }));
    const following = run.following(row);
    for (const next of following) {
      const text = rowText(run, next);
      const words = run.type[next] === END ? "ended the run" : `${text.kind} ${text.where}`;
      items.push(el("li", {}, this.#link(run, next, words)));
    }
    if (!following.length && row === run.length - 1)
      items.push(
        el("li", { text: run.end ? "the run ended" : "the trace stops here: the run was cut short" }),
      );
    if (!items.length && run.header.detailed) items.push(el("li", { text: "resumed the guest" }));
    if (!items.length) return null;
    return el(
      "div",
      { class: "then" },
      el("h3", { text: "Then the VMM:" }),
      el("ol", {}, ...items.slice(0, 12)),
    );
  }

  #undone(run, row) {
    const by = run.undone[row];
    if (!by) return null;
    return el(
      "p",
      { class: "undone-note" },
      el("span", { "aria-hidden": "true", text: "↶ " }),
      `Undone: time went back behind exit ${number(run.n[by])}, so the guest never knew of this. `,
      this.#link(run, by, "Go to the jump"),
    );
  }

  #link(run, row, text) {
    const side = this.view.runs.indexOf(run);
    return el("button", {
      type: "button",
      class: "link",
      text,
      on: { click: () => this.choose(this.view.placeOf[side][row]) },
    });
  }
}

/** Mark the facts and the fields of a device's state that are not the same on both sides. Times never are. */
function markUnlike(left, right) {
  const named = (side) =>
    new Map(
      [...side.querySelectorAll(".fact-list > div, table.state tr")].map((line) => [
        line.firstChild.textContent,
        line,
      ]),
    );
  const others = named(right);
  for (const [name, line] of named(left)) {
    const other = others.get(name);
    if (name === "time" || !other || other.lastChild.textContent === line.lastChild.textContent) continue;
    for (const each of [line, other]) {
      each.classList.add("unlike");
      each.lastChild.append(
        el("span", {
          class: "unlike-mark",
          text: "≠",
          role: "img",
          "aria-label": "differs from the other run",
        }),
      );
    }
  }
}
