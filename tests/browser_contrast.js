// Every visible piece of text whose contrast with what the browser paints behind it is below WCAG AA's 4.5:1,
// as [how many pieces were looked at, those below]. WCAG 2.2, 1.4.3 and "contrast ratio".
const parse = (text) => {
  const c = text.match(/[\d.]+/g).map(Number);
  return text.startsWith("color(srgb")
    ? [...c.slice(0, 3).map((x) => 255 * x), c[3] ?? 1]
    : [...c.slice(0, 3), c[3] ?? 1];
};
const channel = (x) => {
  x /= 255;
  return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
};
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const over = (top, below) => top.slice(0, 3).map((x, i) => x * top[3] + below[i] * (1 - top[3]));
const behind = (element) => {
  const layers = [];
  for (let at = element; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
  return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
};
const bad = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
let count = 0;
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (
    !walker.currentNode.data.trim() ||
    !element.checkVisibility({ visibilityProperty: true, opacityProperty: true })
  )
    continue;
  if (element.closest(".visually-hidden, .sr, script, style, noscript, [hidden]")) continue;
  const style = getComputedStyle(element),
    back = behind(element),
    front = over(parse(style.color), back);
  const [high, low] = [light(front), light(back)].sort((x, y) => y - x);
  const ratio = (high + 0.05) / (low + 0.05);
  count++;
  if (ratio < 4.5)
    bad.push(
      `${ratio.toFixed(2)} ${element.className || element.tagName}: ${walker.currentNode.data.trim().slice(0, 40)}`,
    );
}
return [count, [...new Set(bad)]];
