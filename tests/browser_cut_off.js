// What sticks out of the window, or is cut off by what surrounds it. Code and bytes may scroll by themselves.
const bad = [];
for (const element of document.querySelectorAll("body *")) {
  if (
    !element.checkVisibility() ||
    element.closest(".visually-hidden, .sr, .skip, .wide, .console, noscript, script, .tip")
  )
    continue;
  const box = element.getBoundingClientRect();
  if (!box.width) continue;
  if (box.left < -1 || box.right > document.documentElement.clientWidth + 1)
    bad.push(`out: ${element.tagName}.${element.className} ${box.left} ${box.right}`);
  const style = getComputedStyle(element);
  const clips = style.overflowX !== "visible" && element.tagName !== "INPUT";
  if (clips && element.scrollWidth > element.clientWidth + 1)
    bad.push(`cut: ${element.tagName}.${element.className} ${element.textContent.slice(0, 30)}`);
}
if (document.documentElement.scrollWidth > document.documentElement.clientWidth)
  bad.push("the page scrolls sideways");
return bad;
