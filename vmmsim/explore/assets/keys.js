// The keyboard, and the page of help that tells of it.

const HELP = [
  [
    "Move",
    [
      ["↓ ↑ or j k", "next, previous exit"],
      ["Page Down, Page Up", "a page on, back"],
      ["Home, End", "first, last"],
      ["g", "go to an exit by its number"],
      ["] [", "next, previous snapshot or jump in time"],
      ["d", "first difference of two runs"],
      ["Enter", "from the list to the details"],
    ],
  ],
  [
    "Search",
    [
      ["/", "to the search box"],
      ["n N", "next, previous match"],
      ["o", "show only matches, or all"],
      ["Escape", "out of the box, back to the list"],
    ],
  ],
  [
    "Timeline",
    [
      ["+ −", "look closer, wider"],
      ["0", "the whole run"],
      ["drag", "look closer at what is marked"],
      ["Shift + drag", "move along"],
      ["wheel", "look closer, wider; with Ctrl where the page itself scrolls"],
    ],
  ],
  [
    "What to search for",
    [
      ["uart", "in kind, device, register, instruction, output; or a number in hexadecimal"],
      ["kind:write", "kinds: port_read, mmio_write, halt, restore …"],
      ["device:uart", "who answered"],
      ["addr:0x3f8, addr:0x1000-0x1fff", "an address, a range"],
      ["value:0x41, size:1, cpu:0, rip:, n:", "numbers and ranges"],
      [
        "code:out, out:lost, then:interrupt",
        "in the instruction, in what was printed, in what the VMM did next",
      ],
      ["is:undone", "also is:jump, is:event, is:changed, is:looked, is:unclaimed, is:different"],
      ["-device:uart", "not that"],
      ['"two words"', "all words must fit"],
    ],
  ],
];

function keys(app) {
  const { view } = app;
  const help = $("help"),
    goto = $("goto");
  $("help-body").replaceChildren(
    ...HELP.map(([title, lines]) =>
      el(
        "section",
        {},
        el("h3", { text: title }),
        el(
          "dl",
          { class: "keys" },
          ...lines.map(([key, words]) =>
            el("div", {}, el("dt", {}, el("kbd", { text: key })), el("dd", { text: words })),
          ),
        ),
      ),
    ),
  );
  $("help-open").addEventListener("click", () => help.showModal());
  $("help-close").addEventListener("click", () => help.close());
  $("goto-form").addEventListener("submit", () => {
    const n = parseInt($("goto-n").value.replace(/[^\d]/g, ""), 10);
    if (n > 0) app.choose(view.placeOfAccess(n));
  });
  goto.addEventListener("close", () => $("grid").focus());

  const moves = {
    ArrowDown: () => app.move(1),
    ArrowUp: () => app.move(-1),
    PageDown: () => app.move(app.list.page),
    PageUp: () => app.move(-app.list.page),
    Home: () => app.choose(view.rows[0] ?? -1),
    End: () => app.choose(view.rows[view.rows.length - 1] ?? -1),
  };
  const letters = {
    j: moves.ArrowDown,
    k: moves.ArrowUp,
    n: () => app.jump(view.matches, 1, "match"),
    N: () => app.jump(view.matches, -1, "match"),
    "]": () => app.jump(view.jumps, 1, "jump"),
    "[": () => app.jump(view.jumps, -1, "jump"),
    d: () => (view.first >= 0 ? app.choose(view.first) : say("There is no first difference.")),
    "/": () => {
      $("q").focus();
      $("q").select();
    },
    "?": () => help.showModal(),
    g: () => {
      goto.showModal();
      $("goto-n").select();
    },
    o: () => $("only").click(),
    "+": () => app.timeline.zoom(0.5),
    "=": () => app.timeline.zoom(0.5),
    "-": () => app.timeline.zoom(2),
    0: () => app.timeline.fit(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || help.open || goto.open) return;
    const target = event.target;
    if (target.matches("input, select, textarea")) {
      if (event.key === "Escape") $("grid").focus();
      return;
    }
    let act = letters[event.key];
    // Where something scrolls by itself, arrows are its own.
    if (target === document.body || target === app.list.grid || target === app.timeline.canvas) {
      act ??= moves[event.key];
      if (target === app.timeline.canvas)
        act ??= { ArrowRight: moves.ArrowDown, ArrowLeft: moves.ArrowUp }[event.key];
      if (event.key === "Enter" && target === app.list.grid) act = () => $("details").focus();
    }
    if (event.key === "Escape") act = () => $("grid").focus();
    if (!act) return;
    event.preventDefault();
    act();
  });
}
