// Paints the timeline: jumps as arcs, a lane for each kind or device, guest time against VMM time, the axis.

const LANE = 20,
  LANE_OF_TWO = 13,
  ARCS = 64,
  ARCS_OF_TWO = 36,
  SHARE = 20,
  AXIS = 22,
  GAP = 10,
  MATCHES = 4;

/** The style's colours as the canvas wants them, for the scheme that is shown now. */
function palette() {
  const probe = (palette.probe ??= document.body.appendChild(el("span", { hidden: true })));
  probe.style.forcedColorAdjust = "none";
  const get = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const names = [
    "surface",
    "lane",
    "ink",
    "muted",
    "line",
    "jump",
    "jump-soft",
    "diff",
    "select",
    "guest",
    "vmm",
    "match",
    "port-read",
    "port-write",
    "mmio-read",
    "mmio-write",
    "msr-read",
    "msr-write",
    "event",
  ];
  return Object.fromEntries(names.map((name) => [name, get(name)]));
}

function paint(timeline) {
  const { canvas, view, blocks, stage } = timeline;
  const style = getComputedStyle(document.body);
  const size = parseFloat(style.fontSize) * 0.8;
  const scale = Math.max(1, size / 12);
  const two = blocks.length > 1;
  const draw = canvas.getContext("2d");
  const width = (timeline.width = stage.clientWidth);
  if (width < 40) return;
  draw.font = `${size}px ${style.fontFamily}`;
  const longest = Math.max(
    ...blocks.flatMap((block) => block.lanes.map((lane) => draw.measureText(lane).width)),
    draw.measureText("guest · VMM").width,
  );
  timeline.left = Math.ceil(Math.min(longest + 14, width * 0.34));

  let top = 2;
  for (const block of blocks) {
    block.top = top;
    block.arcs = block.run.jumps.length ? (two ? ARCS_OF_TWO : ARCS) * scale : 4;
    block.lanesTop = top + block.arcs;
    block.laneHeight = (two ? LANE_OF_TWO : LANE) * scale;
    block.lanesBottom = block.lanesTop + block.lanes.length * block.laneHeight;
    block.share = block.run.timed ? SHARE * scale : 0;
    block.bottom = top = block.lanesBottom + block.share + GAP;
  }
  const height = Math.ceil(top + AXIS * scale - GAP + MATCHES);
  const ratio = devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
  }
  draw.setTransform(ratio, 0, 0, ratio, 0, 0);
  draw.clearRect(0, 0, width, height);
  draw.font = `${size}px ${style.fontFamily}`;
  draw.textBaseline = "middle";
  const colours = palette();
  timeline.marks = [];
  const painter = { timeline, draw, colours, width, height, scale, view };
  for (const block of blocks) {
    lanes(painter, block, two);
    rows(painter, block);
    if (block.share) shares(painter, block);
    arcs(painter, block);
  }
  axis(painter, top - GAP + MATCHES);
  overlays(painter, top - GAP + MATCHES);
}

function lanes({ timeline, draw, colours, width }, block, two) {
  const { left } = timeline;
  block.lanes.forEach((name, lane) => {
    const y = block.lanesTop + lane * block.laneHeight;
    draw.fillStyle = colours.lane;
    draw.fillRect(left, y + 1, width - left, block.laneHeight - 2);
    draw.fillStyle = colours.muted;
    draw.textAlign = "right";
    draw.fillText(fitted(draw, name, left - 10), left - 8, y + block.laneHeight / 2);
  });
  if (block.share)
    draw.fillText(fitted(draw, "guest · VMM", left - 10), left - 8, block.lanesBottom + block.share / 2 + 1);
  draw.textAlign = "left";
  if (two) {
    draw.fillStyle = colours.ink;
    draw.font = `600 ${draw.font}`;
    draw.fillText(block.run.name, 2, block.lanesTop - Math.min(8, block.arcs / 2) - 2);
    draw.font = draw.font.replace(/^600 /, "");
  }
  // What time travel undid is hatched: it happened, and the guest does not know.
  draw.save();
  draw.beginPath();
  for (const [first, last] of block.run.undoneSpans) {
    const from = Math.max(left, timeline.toX(at(timeline, block, first)[0])),
      to = Math.min(width, timeline.toX(at(timeline, block, last)[1]));
    if (to > from) draw.rect(from, block.lanesTop, to - from, block.lanesBottom - block.lanesTop);
  }
  draw.clip();
  draw.strokeStyle = colours["jump-soft"];
  draw.lineWidth = 1.2;
  draw.beginPath();
  if (block.run.undoneSpans.length) {
    const high = block.lanesBottom - block.lanesTop;
    for (let x = left - high; x < width; x += 7) {
      draw.moveTo(x, block.lanesBottom);
      draw.lineTo(x + high, block.lanesTop);
    }
  }
  draw.stroke();
  draw.restore();
}

/** Where a run's row lies on the axis: [from, to]. */
function at(timeline, block, row) {
  return timeline.span(timeline.view.placeOf[block.side][row], block.side);
}

/** The rows of a block that are in the window: [first, last]. */
function inWindow(timeline, block) {
  const low = timeline.placeAt(timeline.from),
    high = timeline.placeAt(timeline.to);
  const places = timeline.view.placeOf[block.side];
  return [lowerBound(places, low), Math.min(block.run.length - 1, lowerBound(places, high))];
}

function rows({ timeline, draw, colours, width }, block) {
  const { left } = timeline;
  const { run } = block;
  if (!run.length) return;
  const [first, last] = inWindow(timeline, block);
  const wide = Math.max(1, Math.ceil(width - left));
  const bins = block.lanes.map(() => new Uint16Array(wide + 1));
  const kinds = block.lanes.map(() => new Int32Array(wide + 1));
  const step = (width - left) / (timeline.to - timeline.from);
  const close = timeline.axis === "row" && step >= 3;
  for (let row = first; row <= last; row++) {
    const lane = laneOf(block, row);
    if (lane < 0) continue;
    const [from, to] = at(timeline, block, row);
    const x = (timeline.axis === "time" ? to : from) - timeline.from;
    const bin = Math.floor(x * step);
    if (bin < -1 || bin > wide) continue;
    if (close) {
      draw.fillStyle = colours[kindClass(run.kindName(row))];
      draw.fillRect(
        left + Math.max(0, x * step),
        block.lanesTop + lane * block.laneHeight + 3,
        Math.min(Math.max(2, step - 1.2), 12),
        block.laneHeight - 6,
      );
    } else if (bin >= 0) {
      bins[lane][bin]++;
      kinds[lane][bin] = run.kind[row];
    }
  }
  if (close) return;
  const most = Math.log2(1 + Math.max(1, ...bins.map((lane) => lane.reduce((x, y) => Math.max(x, y), 0))));
  bins.forEach((lane, index) => {
    const y = block.lanesTop + index * block.laneHeight;
    lane.forEach((count, x) => {
      if (!count) return;
      draw.globalAlpha = 0.45 + (0.55 * Math.log2(1 + count)) / most;
      draw.fillStyle = colours[kindClass(run.strings[kinds[index][x]])];
      draw.fillRect(left + x, y + 3, 1.4, block.laneHeight - 6);
    });
  });
  draw.globalAlpha = 1;
}

/** A strip in which each column is divided as the time was: the guest's below, the VMM's above. */
function shares({ timeline, draw, colours, width }, block) {
  const { left } = timeline;
  const { run } = block;
  const [first, last] = inWindow(timeline, block);
  const wide = Math.max(1, Math.ceil(width - left));
  const guest = new Float64Array(wide + 1),
    vmm = new Float64Array(wide + 1);
  const step = (width - left) / (timeline.to - timeline.from);
  const add = (sums, from, to, amount) => {
    const low = Math.max(0, (from - timeline.from) * step),
      high = Math.min(wide, (to - timeline.from) * step);
    const each = amount / Math.max(1, Math.ceil(high) - Math.floor(low));
    for (let x = Math.floor(low); x < Math.max(high, Math.floor(low) + 1) && x <= wide; x++) sums[x] += each;
  };
  for (let row = first; row <= last; row++) {
    const [from, to] = at(timeline, block, row);
    const middle = timeline.axis === "time" ? from + run.guest[row] : to;
    add(guest, from, timeline.axis === "time" ? middle : to, run.guest[row]);
    add(vmm, timeline.axis === "time" ? middle : from, to, run.vmm[row]);
  }
  const y = block.lanesBottom + 3,
    high = block.share - 4;
  for (let x = 0; x < wide; x++) {
    const sum = guest[x] + vmm[x];
    if (!sum) continue;
    const part = Math.round((high * guest[x]) / sum);
    draw.fillStyle = colours.guest;
    draw.fillRect(left + x, y + high - part, 1.2, part);
    draw.fillStyle = colours.vmm;
    draw.fillRect(left + x, y, 1.2, high - part);
  }
}

/** Snapshots as diamonds, restores as arrows back to them. */
function arcs({ timeline, draw, colours, width, scale }, block) {
  const { left } = timeline;
  const { run } = block;
  if (!run.jumps.length) return;
  const base = block.lanesTop - 6 * scale;
  draw.save();
  draw.beginPath();
  draw.rect(left - 8, block.top, width - left + 16, block.lanesBottom - block.top);
  draw.clip();
  const reach = run.restores.reduce((most, row) => Math.max(most, row - run.target[row]), 1);
  const many = run.restores.length > 200;
  draw.lineWidth = (many ? 1 : 2) * scale;
  for (const row of run.restores) {
    const from = timeline.toX(at(timeline, block, row)[0]);
    const to = run.target[row] >= 0 ? timeline.toX(at(timeline, block, run.target[row])[0]) : left;
    if (from < left && to < left) continue;
    if (from > width && to > width) continue;
    const chosen = timeline.view.placeOf[block.side][row] === timeline.selected;
    const high = (base - block.top - 6) * (0.3 + 0.7 * Math.sqrt((row - run.target[row]) / reach));
    draw.strokeStyle = draw.fillStyle = colours.jump;
    draw.lineWidth = (chosen ? 3.5 : many ? 1 : 2) * scale;
    draw.globalAlpha = many && !chosen ? 0.5 : 1;
    draw.beginPath();
    draw.moveTo(from, base);
    draw.bezierCurveTo(from, base - high * 1.3, to, base - high * 1.3, to, base - 13 * scale);
    draw.stroke();
    draw.beginPath();
    draw.moveTo(to, base - 6 * scale);
    draw.lineTo(to - 4.5 * scale, base - 14 * scale);
    draw.lineTo(to + 4.5 * scale, base - 14 * scale);
    draw.fill();
    draw.beginPath();
    draw.arc(from, base, 3.2 * scale, 0, 7);
    draw.fill();
    draw.globalAlpha = 0.6;
    draw.fillRect(from - 0.5, base, 1, block.lanesBottom - base);
    timeline.marks.push({ x: from, y: base, place: timeline.view.placeOf[block.side][row] });
    timeline.marks.push({
      x: (from + to) / 2,
      y: base - high,
      place: timeline.view.placeOf[block.side][row],
    });
  }
  draw.globalAlpha = 1;
  for (const row of run.jumps) {
    if (run.type[row] !== SNAPSHOT) continue;
    const x = timeline.toX(at(timeline, block, row)[0]);
    if (x < left - 8 || x > width + 8) continue;
    const r = 6 * scale,
      y = base + 1;
    draw.fillStyle = colours.surface;
    draw.strokeStyle = colours.jump;
    draw.lineWidth = 2 * scale;
    draw.beginPath();
    draw.moveTo(x, y - r);
    draw.lineTo(x + r, y);
    draw.lineTo(x, y + r);
    draw.lineTo(x - r, y);
    draw.closePath();
    draw.fill();
    draw.stroke();
    timeline.marks.unshift({ x, y, place: timeline.view.placeOf[block.side][row] });
  }
  draw.restore();
}

function axis({ timeline, draw, colours, width, scale, view }, y) {
  const { left } = timeline;
  const time = timeline.axis === "time";
  const last = view.length ? Math.max(0, Math.min(view.length, Math.ceil(timeline.to)) - 1) : -1;
  // By exit number, marks are at round numbers of exits, wherever those stand among the rows.
  const [from, to] = time
    ? [timeline.from, Math.min(timeline.to, timeline.total)]
    : last < 0
      ? [1, 0]
      : [view.n(Math.floor(timeline.from)), view.n(last)];
  const room = Math.max(2, Math.floor((width - left) / (90 * scale)));
  const raw = Math.max((to - from) / room, 1e-9);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = Math.max(1, [1, 2, 5, 10].find((factor) => factor * power >= raw) * power);
  draw.fillStyle = colours.muted;
  draw.textAlign = "center";
  for (let value = Math.ceil(from / step) * step; value <= to; value += step) {
    const place = time ? 0 : view.placeOfAccess(Math.max(1, value));
    const x = timeline.toX(time ? value : place + 0.5);
    const text = time ? (value ? duration(Math.round(value)) : "0") : number(view.n(place));
    draw.fillRect(x - 0.5, y + 2, 1, 4);
    const half = draw.measureText(text).width / 2;
    draw.fillText(text, Math.min(width - half - 1, Math.max(left + half, x)), y + 14 * scale);
  }
  draw.textAlign = "right";
  draw.fillText(fitted(draw, time ? "time" : "exit", left - 10), left - 8, y + 14 * scale);
  draw.textAlign = "left";
}

/** Matches of the search, the first difference, the selection, the brush. */
function overlays({ timeline, draw, colours, width, view }, y) {
  const { left } = timeline;
  const scaleOf = (place) => timeline.toX(timeline.span(place)[0]);
  const step = Math.max(1.5, Math.min(8, (width - left) / (timeline.to - timeline.from)));
  draw.fillStyle = colours.match;
  let drawn = -10;
  for (
    let index = lowerBound(view.matches, timeline.placeAt(timeline.from));
    index < view.matches.length;
    index++
  ) {
    const x = scaleOf(view.matches[index]);
    if (x > width) break;
    if (x - drawn < 1 || x < left) continue;
    draw.fillRect(x, y - 4, step, 4);
    drawn = x;
  }
  if (view.first >= 0) {
    const x = scaleOf(view.first);
    if (x >= left) {
      draw.fillStyle = colours.diff;
      draw.fillRect(x - 1, 0, 2, y);
      const label = "≠ first difference",
        wide = draw.measureText(label).width;
      const at = Math.min(x + 5, width - wide - 2);
      draw.fillStyle = colours.surface;
      draw.fillRect(at - 3, 0, wide + 6, 18);
      draw.fillStyle = colours.diff;
      draw.fillText(label, at, 9);
    }
  }
  if (timeline.selected >= 0) {
    const [from, to] = timeline.span(timeline.selected).map((value) => timeline.toX(value));
    if (to >= left && from <= width) {
      const x = Math.max(left, from),
        wide = Math.max(2, Math.min(to - from, width));
      draw.strokeStyle = draw.fillStyle = colours.select;
      draw.lineWidth = 2;
      if (wide > 4) draw.strokeRect(x - 0.5, 1, Math.min(wide, 13.5), y);
      else draw.fillRect(x - 0.5, 0, 2, y);
      draw.beginPath();
      const middle = x + Math.min(wide, 13) / 2;
      draw.moveTo(middle - 6, y + 7);
      draw.lineTo(middle + 6, y + 7);
      draw.lineTo(middle, y + 1);
      draw.fill();
    }
  }
  if (timeline.brush && !timeline.brush.pan) {
    const { from, to } = timeline.brush;
    draw.fillStyle = colours.select;
    draw.globalAlpha = 0.2;
    draw.fillRect(Math.min(from, to), 0, Math.abs(to - from), y);
    draw.globalAlpha = 1;
  }
}

/** As much of a text as fits so many pixels. */
function fitted(draw, text, room) {
  if (draw.measureText(text).width <= room) return text;
  let low = 0,
    high = text.length;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (draw.measureText(text.slice(0, middle) + "…").width <= room) low = middle;
    else high = middle - 1;
  }
  return text.slice(0, low) + "…";
}
