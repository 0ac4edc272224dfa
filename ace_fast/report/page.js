// What a page can do beyond showing itself; without script everything is there, one device after the other.
"use strict";
const all = (selector, from = document) => [...from.querySelectorAll(selector)];

// Theme: as the system has it, then light, then dark.
const themes = ["light dark", "light", "dark"];
const themeButton = document.querySelector(".theme");
const setTheme = (scheme) => {
  document.documentElement.style.colorScheme = scheme;
  themeButton.textContent = "Theme: " + { "light dark": "system", light: "light", dark: "dark" }[scheme];
};
themeButton.hidden = false;
themeButton.addEventListener("click", () => {
  const now = document.documentElement.style.colorScheme || themes[0];
  setTheme(themes[(themes.indexOf(now) + 1) % themes.length]);
});

// Device: the radio buttons show what belongs to one device; "all" shows everything.
const choices = all("input[name=device]");
const show = (device) => {
  for (const part of all("[data-device]")) part.hidden = device !== "all" && part.dataset.device !== device;
  for (const section of all("main > section[id]")) {
    const parts = all("[data-device]", section);
    section.hidden = parts.length > 0 && parts.every((part) => part.hidden);
    const link = document.querySelector(`nav a[href="#${section.id}"]`);
    link.parentElement.hidden = section.hidden;
  }
  for (const choice of choices) choice.checked = choice.value === device;
};
for (const choice of choices) choice.addEventListener("change", () => show(choice.value));
if (choices.length) show((choices.find((choice) => choice.checked) || choices[0]).value);

// Links to a command: show its device, open what hides it, and give it the focus.
const reveal = () => {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  const part = target.closest("[data-device]");
  if (part && part.hidden) show(part.dataset.device);
  for (let box = target.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
  target.scrollIntoView();
  target.focus({ preventScroll: true });
};
addEventListener("hashchange", reveal);
reveal();

// Tables: a click on a heading sorts by data-value (numbers), where one has it, or by text; without a number comes last.
const compare = (column, sign) => (a, b) => {
  const [x, y] = [a, b].map((row) => row.cells[column]);
  const [p, q] = [x, y].map((cell) => cell.dataset.value);
  if (p === undefined && q === undefined) return sign * x.textContent.localeCompare(y.textContent, "en", { numeric: true });
  if (p === undefined || q === undefined) return (p === undefined) - (q === undefined);
  return sign * (p - q);
};
for (const button of all("th button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    const table = button.closest("table");
    const up = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of all("th[aria-sort]", table)) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort(compare(heading.cellIndex, up ? 1 : -1)));
  });
}

// Charts: one stop of the Tab key each, arrow keys from mark to mark; the number of a mark beside it.
const tip = document.getElementById("tip");
const place = (mark) => {
  tip.textContent = mark.getAttribute("aria-label");
  tip.hidden = false;
  const at = mark.getBoundingClientRect();
  const left = Math.min(Math.max(at.left + at.width / 2 - tip.offsetWidth / 2, 6), innerWidth - tip.offsetWidth - 6);
  tip.style.left = left + "px";
  tip.style.top = (at.top > tip.offsetHeight + 12 ? at.top - tip.offsetHeight - 8 : at.bottom + 8) + "px";
};
for (const chart of all("svg")) {
  const marks = all(".mark", chart);
  marks.forEach((mark, i) => mark.setAttribute("tabindex", i ? -1 : 0));
  chart.addEventListener("keydown", (event) => {
    const at = marks.indexOf(document.activeElement);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const to = { Home: 0, End: marks.length - 1 }[event.key] ?? (step && Math.min(Math.max(at + step, 0), marks.length - 1));
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    marks[at].setAttribute("tabindex", -1);
    marks[to].setAttribute("tabindex", 0);
    marks[to].focus();
  });
  chart.addEventListener("focusin", (event) => place(event.target.closest(".mark")));
  chart.addEventListener("focusout", () => (tip.hidden = true));
  chart.addEventListener("pointerover", (event) => event.target.closest(".mark") && place(event.target.closest(".mark")));
  chart.addEventListener("pointerout", () => (tip.hidden = true));
}
addEventListener("keydown", (event) => event.key === "Escape" && (tip.hidden = true));

// Paper shows what is folded away.
let closed = [];
addEventListener("beforeprint", () => {
  closed = all("details:not([open])");
  for (const box of closed) box.open = true;
});
addEventListener("afterprint", () => closed.forEach((box) => (box.open = false)));
