// Text for people, and elements made of it. Nothing in this page makes markup of data.

const $ = (id) => document.getElementById(id);

/** An element. `attributes` are attributes, but for `text`, `on` (handlers) and `data`. */
function el(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name === "on")
      for (const [event, act] of Object.entries(value)) element.addEventListener(event, act);
    else if (name === "data") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** A character that is not to be taken literally: controls, what turns the direction of text, what is invisible. */
const HIDDEN =
  /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]/u;
const HIDDEN_ALL = new RegExp(HIDDEN.source, "gu");
const HIDDEN_BUT_LINES = new RegExp(
  HIDDEN.source.replace("\\u0000-\\u001f", "\\u0000-\\u0008\\u000b-\\u001f"),
  "gu",
);
const ESCAPES = { 8: "\\b", 9: "\\t", 10: "\\n", 13: "\\r" };

/** A character as C writes it: `\n`, `\x1b`, `\u{202e}`. */
function shown(character) {
  const code = character.codePointAt(0);
  const digits = code.toString(16);
  return ESCAPES[code] ?? (code < 0x100 ? `\\x${digits.padStart(2, "0")}` : `\\u{${digits}}`);
}

/** Text on one line with all that is invisible made visible. */
const visible = (text) => text.replace(HIDDEN_ALL, shown);
/** The same, but lines stay lines, and tabs tabs. */
const visibleLines = (text) => text.replace(/\r\n/g, "\n").replace(HIDDEN_BUT_LINES, shown);

const NUMBERS = new Intl.NumberFormat("en-US");
const number = (value) => NUMBERS.format(value);

const plural = (count, one, many = one + "s") => `${number(count)} ${count === 1 ? one : many}`;

/** `0x` and so many digits; `hex` has no prefix. */
const hex = (digits, width = 0) => "0x" + digits.padStart(width, "0");

/** A duration of so many nanoseconds. */
function duration(ns) {
  if (ns < 1e3) return `${ns} ns`;
  const [unit, factor] = ns < 1e6 ? ["µs", 1e3] : ns < 1e9 ? ["ms", 1e6] : ["s", 1e9];
  const value = ns / factor;
  return `${value < 10 ? value.toFixed(2) : value < 100 ? value.toFixed(1) : number(Math.round(value))} ${unit}`;
}

/** Printable ASCII for a byte's value in hexadecimal digits, or "". */
function letter(digits, size) {
  if (size !== 1) return "";
  const code = parseInt(digits, 16);
  const text = code >= 0x20 && code < 0x7f ? String.fromCharCode(code) : ESCAPES[code];
  return text ? `'${text}'` : "";
}

/** Say something to who cannot see it. */
function say(text) {
  $("said").textContent = text;
}
