// What the address bar remembers (#exit=17&q=uart), so that a link leads to an exit; and the theme.

function readHash(view) {
  const given = new URLSearchParams(location.hash.slice(1));
  const names = (key) => new Set(given.getAll(key));
  let place = -1;
  if (/^\d+$/.test(given.get("row") ?? "")) place = Math.min(view.length, Number(given.get("row"))) - 1;
  else if (/^\d+$/.test(given.get("exit") ?? "")) place = view.placeOfAccess(Number(given.get("exit")));
  return {
    place,
    query: given.get("q") ?? "",
    only: given.get("only") === "1",
    kinds: names("hide"),
    devices: names("without"),
    axis: given.get("axis") === "time" ? "time" : "row",
    lanes: given.get("lanes") === "device" ? "device" : "kind",
  };
}

function writeHash(view, place, timeline) {
  const out = new URLSearchParams();
  if (place >= 0) {
    const [run, row] = view.at(place)[0];
    if (run.type[row] === ACCESS) out.set("exit", run.n[row]);
    else out.set("row", place + 1);
  }
  if (view.query) out.set("q", view.query);
  if (view.only) out.set("only", "1");
  for (const name of view.hiddenKinds) out.append("hide", name);
  for (const name of view.hiddenDevices) out.append("without", name);
  if (timeline.axis !== "row") out.set("axis", timeline.axis);
  if (timeline.by !== "kind") out.set("lanes", timeline.by);
  const hash = `#${out}`;
  if (hash === location.hash) return;
  writeHash.own = hash;
  try {
    history.replaceState(null, "", hash);
  } catch {
    location.replace(hash);
  }
}

const THEMES = ["auto", "light", "dark"];

/** The theme's button: as the system has it, light, dark. A browser may keep it for other pages, or refuse to. */
function themeButton(changed) {
  const button = $("theme");
  const set = (theme, keep) => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
    button.dataset.now = theme;
    if (keep)
      try {
        localStorage.setItem("vmmsim-theme", theme);
      } catch {
        /* it is for this visit only */
      }
    changed();
  };
  let kept = "auto";
  try {
    kept = localStorage.getItem("vmmsim-theme") ?? "auto";
  } catch {
    /* as above */
  }
  set(THEMES.includes(kept) ? kept : "auto", false);
  button.addEventListener("click", () =>
    set(THEMES[(THEMES.indexOf(button.dataset.now) + 1) % THEMES.length], true),
  );
}
