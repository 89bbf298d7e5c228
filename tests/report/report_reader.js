// Put into a copy of report.html: plays a reader, and ends by writing what it saw into the page.
addEventListener("load", async () => {
  const see = {};
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const wait = () => new Promise((done) => setTimeout(done, 50));
  const seen = (items) => items.filter((item) => item.offsetParent !== null);
  const table = () => seen($$("#scores tbody tr")).map((row) => row.cells[0].textContent);
  const cards = () => seen($$(".card")).map((card) => $("h3", card).textContent);
  const set = (input, value, kind = "input") => {
    input.value = value;
    input.dispatchEvent(new Event(kind, { bubbles: true }));
  };
  const press = (input, key) => {
    input.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  };
  const look = (card) => ({
    layers: $$(".view img", card).filter((img) => getComputedStyle(img).display !== "none")
      .map((img) => [img.dataset.layer, Number(getComputedStyle(img).opacity)]),
    name: $("output", card).textContent,
    position: Number($(".blend", card).value),
    said: $(".blend", card).getAttribute("aria-valuetext"),
    scale: seen($$(".scale span", card)).map((span) => span.textContent),
  });
  const shown = (element) => getComputedStyle(element).display !== "none";
  const drawn = (card) => ["truth", "prediction"].map((kind) => shown($(`.view .${kind}`, card)));
  const sorted = () => $$("th[aria-sort]").filter((th) => th.getAttribute("aria-sort") !== "none")
    .map((th) => [$("button", th).dataset.key, th.getAttribute("aria-sort")]);
  try {
    see.start = [table(), cards()];
    $("#scores button[data-key=f1]").click();
    see.rising = [table(), cards(), sorted(), $("#sort").value];
    $("#scores button[data-key=f1]").click();
    see.falling = [table(), cards(), sorted()];
    set($("#sort"), "mean_std", "change");
    see.std = [table(), cards()];
    $("#turn").click();
    see.turned = [table(), cards()];
    set($("#sort"), "image_id", "change");
    set($("#text"), "ONE");
    see.text = [table(), cards(), $("#count").textContent];
    set($("#below"), "0.9");
    see.both = [table(), cards(), $("#count").textContent];
    set($("#text"), "no such image");
    see.none = [table(), cards(), getComputedStyle($("#nothing")).display];
    $("#reset").click();
    see.reset = [table(), cards(), $("#count").textContent, getComputedStyle($("#nothing")).display];
    const [first, second] = $$(".card");
    see.image = look(first);
    set($(".blend", first), "1.25");
    see.blend = [look(first), look(second)];
    press($(".blend", first), "ArrowRight");
    see.key = look(first);
    press($(".blend", first), "End");
    $$(".stops button", first)[4].click();
    see.stop = look(first);
    press($(".blend", first), "ArrowRight");
    see.beyond = look(first);
    set($("#layer"), "3");
    see.every = [look(first), look(second), $("#layer-name").textContent];
    see.contours = [drawn(first)];
    $(".toggle input[name=truth]", first).click();
    see.contours.push(drawn(first), drawn(second));
    $(".toolbar input[name=prediction]").click();
    see.contours.push(drawn(first), drawn(second));
    $("#scores tbody a").click();
    await wait();
    see.target = $(".card:target h3").textContent;
    const pictures = $$("img");
    for (const img of pictures) { img.loading = "eager"; img.hidden = false; }
    for (let k = 0; k < 40 && !pictures.every((img) => img.complete); k++) await wait();
    see.sizes = pictures.map((img) => img.naturalWidth);
    const fetched = performance.getEntriesByType("resource").map((entry) => entry.name);
    see.fetched = fetched.filter((name) => !name.startsWith("data:"));
  } catch (error) { problems.push("the test itself: " + error.stack); }
  see.problems = problems;
  document.body.innerHTML = "";
  document.body.append(Object.assign(document.createElement("pre"), { id: "seen", textContent: JSON.stringify(see) }));
});
