"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const one = (selector, root = document) => root.querySelector(selector);
const collator = new Intl.Collator("en", { numeric: true });
const layers = all(".toolbar [data-title]").map((item) => item.dataset);
const rows = all("#scores tbody tr").map((row) => ({ row, card: document.getElementById(row.dataset.card) }));

// Infinity where the image has no such layer.
function layerOf(card, key) {
  const k = all(".view img", card).findIndex((image) => image.dataset.layer === key);
  return k < 0 ? Infinity : k;
}

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
  // Contours of raters take the place of all others, those of a draw that of the prediction.
  const near = (key) => Math.max(0, 1 - Math.abs(position - layerOf(card, key))), raters = near("raters"), draws = near("draws");
  const opacity = { raters, draws, truth: 1 - raters, prediction: 1 - raters - draws };
  for (const group of all(".view svg > g", card)) group.style.opacity = opacity[group.classList[0]];
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
const WAYS = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 };
function steps(event) {
  const way = WAYS[event.key];
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

// Draws go round; where another layer is shown, the draw that was shown last comes first.
function turn(card, way) {
  const own = one(".turn", card), layer = layerOf(card, "draws"), here = Number(one(".blend", card).value) === layer;
  const draws = own.dataset.paths.split("|"), next = (Number(own.dataset.now) + (here ? way : 0) + draws.length) % draws.length;
  const paths = draws[next].split(",");  // of each class
  all(".draws path", card).forEach((path, k) => path.setAttribute("d", paths[k]));
  own.dataset.now = next;
  one("output", own).textContent = `draw ${next + 1} of ${draws.length}${paths.some(Boolean) ? "" : ", empty"}`;
  show(card, layer);
}

for (const { card } of rows) {
  one(".blend", card).addEventListener("input", (event) => show(card, Number(event.target.value)));
  one(".blend", card).addEventListener("keydown", steps);
  all(".stops button", card).forEach((button, k) => button.addEventListener("click", () => show(card, k)));
  for (const box of all(".toggle input", card)) {
    box.addEventListener("change", () => contours(card, box.name, box.checked));
  }
  all(".turn button", card).forEach((button, k) => {
    button.addEventListener("click", () => turn(card, k ? 1 : -1));
    button.addEventListener("keydown", (event) => {
      if (!WAYS[event.key]) return;
      event.preventDefault();
      turn(card, WAYS[event.key]);
    });
  });
  for (const image of all(".view img:not([src])", card)) image.src = one("img[data-layer=image]", card).src;
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
const sortBy = one("#sort"), order = one("#turn");
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
  order.textContent = up ? "↑ rising" : "↓ falling";
}
sortBy.addEventListener("change", sort);
order.addEventListener("click", () => { up = !up; sort(); });
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
addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  const open = document.activeElement.closest("details[open]") ?? all("details[open]").at(-1);
  if (!open) return;
  open.open = false;
  one("summary", open).focus();
});
// Firefox keeps what was typed when a page is loaded again.
sort();
filter();
