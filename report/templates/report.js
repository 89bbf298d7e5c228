"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const one = (selector, root = document) => root.querySelector(selector);
const collator = new Intl.Collator("en", { numeric: true });
const layers = all(".toolbar [data-title]").map((item) => item.dataset);
const rows = all("#scores tbody tr").map((row) => ({ row, card: document.getElementById(row.dataset.card) }));

// Layers: position k shows layer k, between two of them the next one fades in.
function show(card, position) {
  const own = all(".view img", card), slider = one(".blend", card);
  const base = Math.floor(position), share = position - base;
  own.forEach((image, k) => {
    image.hidden = k !== base && !(k === base + 1 && share > 0);
    image.style.opacity = k > base ? share : 1;
  });
  const from = own[base].dataset, to = share > 0 ? own[base + 1].dataset : null;
  const name = to ? `${Math.round(100 * (1 - share))} % ${from.title}, ${Math.round(100 * share)} % ${to.title}` : from.title;
  const raters = own.findIndex((image) => image.dataset.layer === "raters");
  const marked = raters < 0 ? 0 : Math.max(0, 1 - Math.abs(position - raters));  // raters' contours instead of others
  for (const group of all(".view g", card)) group.style.opacity = group.classList.contains("raters") ? marked : 1 - marked;
  slider.value = position;
  slider.setAttribute("aria-valuetext", name);
  one("output", card).textContent = name;
  const main = to && share >= 0.5 ? to : from, scale = one(".scale", card);
  scale.hidden = !main.gradient;
  if (main.gradient) {
    one("i", scale).style.background = `linear-gradient(to right, ${main.gradient})`;
    all("span", scale).forEach((span, k) => { span.textContent = [main.low, main.middle, main.high][k]; });
  }
}

// Arrow keys go from layer to layer; the mouse blends.
function steps(event) {
  const way = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
  if (!way) return;
  const slider = event.target, now = Number(slider.value);
  slider.value = way > 0 ? Math.floor(now) + 1 : Math.ceil(now) - 1;
  event.preventDefault();
  slider.dispatchEvent(new Event("input", { bubbles: true }));
}

// The order of the layers is that of the page; an image may lack some of them.
function showKey(card, position) {
  const own = all(".view img", card).map((image) => image.dataset.layer);
  const base = Math.floor(position), share = position - base;
  const here = own.indexOf(layers[base].layer), next = share > 0 ? own.indexOf(layers[base + 1].layer) : -1;
  if (here >= 0) show(card, next === here + 1 ? here + share : here);
}

for (const { card } of rows) {
  one(".blend", card).addEventListener("input", (event) => show(card, Number(event.target.value)));
  one(".blend", card).addEventListener("keydown", steps);
  all(".stops button", card).forEach((button, k) => button.addEventListener("click", () => show(card, k)));
  for (const box of all(".toggle input", card)) {
    box.addEventListener("change", () => contours(card, box.name, box.checked));
  }
  for (const image of all("img[data-layer=raters]", card)) image.src = one("img[data-layer=image]", card).src;
  show(card, 0);
}
function contours(card, kind, on) {
  for (const group of all(`.view .${kind}`, card)) group.toggleAttribute("hidden", !on);
  for (const box of all(`.toggle input[name=${kind}]`, card)) box.checked = on;
}

const every = one("#layer");
every.addEventListener("keydown", steps);
every.addEventListener("input", () => {
  const position = Number(every.value), base = Math.floor(position), share = Math.round(100 * (position - base));
  const name = share ? `${layers[base].title} + ${share} % ${layers[base + 1].title}` : layers[base].title;
  one("#layer-name").textContent = name;
  every.setAttribute("aria-valuetext", name);
  for (const { card } of rows) showKey(card, position);
});
for (const box of all(".toolbar .toggle input")) {
  box.addEventListener("change", () => { for (const { card } of rows) contours(card, box.name, box.checked); });
}

// Sorting and filtering: table and cards have one order, and show the same images.
const sortBy = one("#sort"), turn = one("#turn");
let up = true;
function sort() {
  const key = sortBy.value, value = (item) => item.row.dataset[key];
  const compare = (a, b) => (key === "image_id" ? collator.compare(a, b) : a - b);
  // What is missing stays at the end.
  rows.sort((a, b) => (value(a) === "") - (value(b) === "") || (up ? 1 : -1) * compare(value(a), value(b)));
  one("#scores tbody").append(...rows.map((item) => item.row));
  one("#cards").append(...rows.map((item) => item.card));
  for (const button of all("#scores th button")) {
    const here = button.dataset.key === key;
    button.closest("th").setAttribute("aria-sort", here ? (up ? "ascending" : "descending") : "none");
  }
  turn.textContent = up ? "↑ rising" : "↓ falling";
}
sortBy.addEventListener("change", sort);
turn.addEventListener("click", () => { up = !up; sort(); });
for (const button of all("#scores th button")) {
  button.addEventListener("click", () => {
    up = sortBy.value === button.dataset.key ? !up : true;
    sortBy.value = button.dataset.key;
    sort();
  });
}

const text = one("#text"), below = one("#below");
function filter() {
  const wanted = text.value.trim().toLowerCase(), most = below && below.value !== "" ? Number(below.value) : Infinity;
  let count = 0;
  for (const { row, card } of rows) {
    const f1 = row.dataset.f1;
    const fits = row.dataset.image_id.toLowerCase().includes(wanted) && (most === Infinity || (f1 !== "" && Number(f1) < most));
    row.hidden = card.hidden = !fits;
    count += fits;
  }
  one("#count").textContent = `${count} of ${rows.length} images`;
  one("#nothing").hidden = count > 0;
}
text.addEventListener("input", filter);
below?.addEventListener("input", filter);
one("#reset").addEventListener("click", () => {
  text.value = "";
  if (below) below.value = "";
  filter();
});
// Firefox keeps what was typed when a page is loaded again.
sort();
filter();
