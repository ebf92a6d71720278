"use strict";
// Draws the anchors. Everything of the dataset reaches the page through textContent and known attributes, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const controls = document.getElementById("controls");
  const list = document.getElementById("anchors");
  const nothing = document.getElementById("nothing");
  const query = document.getElementById("query");
  const onlyAbove = document.getElementById("only-above");
  const count = document.getElementById("count");
  const store = { i2t: { anchor: "images", other: "texts" }, t2i: { anchor: "texts", other: "images" } };
  const plural = (number, one, many) => `${number} ${number === 1 ? one : many}`;

  function node(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children.filter((child) => child !== null));
    return made;
  }

  function signed(value, decimals) {
    const text = Math.abs(value).toFixed(decimals);
    return Number(text) === 0 ? text : (value < 0 ? "−" : "+") + text;
  }

  const fixed = (value, decimals) => (value < 0 ? "−" : "") + Math.abs(value).toFixed(decimals);

  function band(hardness) {
    const steps = Math.min(2, Math.floor(Math.abs(hardness) / data.step));
    return (hardness > 0 ? "above-" : "below-") + steps;
  }

  function picture(item) {
    if (!item.src) return node("span", { class: "unseen", dir: "auto" }, item.id);
    return node("img", { class: "picture", src: item.src, alt: item.text, title: item.text, decoding: "async" });
  }

  const caption = (item, tag = "span", name = "caption") =>
    node(tag, { class: name, dir: "auto", title: item.text }, item.text);

  function tile(kind, negative, rank) {
    const [row, score, hardness, before] = negative;
    const item = data[kind][row];
    const outscores = hardness > 0;
    const moved = before === null ? "" : before === 0 ? "new" : before === rank ? "" : `was ${before}`;
    const what = node("div", { class: "what" });
    if (kind === "images") {
      what.append(picture(item));
      if (item.text !== item.id) what.append(caption(item));
    } else {
      const seen = data.images[item.seen_with];
      // The picture a negative caption belongs to says more than its words; a vector has none.
      if (seen.src) what.append(picture(seen));
      what.append(caption(item));
    }
    const chip = node("span", { class: `chip ${band(hardness)}` });
    chip.append(node("span", { class: "hush" }, "hardness "), (outscores ? "▲ " : "") + signed(hardness, 3));
    if (outscores) chip.append(node("span", { class: "hush" }, ", above the lowest positive"));
    return node(
      "li",
      { class: outscores ? "outscores" : "" },
      node("div", { class: "rank" }, node("span", {}, node("span", { class: "hush" }, "rank "), String(rank)), node("span", {}, moved)),
      what,
      node("div", { class: "figure" }, node("span", { class: "score" }, node("span", { class: "hush" }, "score "), fixed(score, 3)), chip),
    );
  }

  function block(kind, anchor, round, strip) {
    const found = anchor.rounds[round];
    const made = node("div", { class: "block" });
    if (!found) {
      made.append(node("p", {}, node("strong", {}, `Round ${round}`), ": nothing mined; it trained on negatives of the batch alone."));
      return made;
    }
    const above = node("span", { class: found.above ? "much" : "" }, `${found.above} of ${found.found} above the lowest positive`);
    made.append(node("p", {}, node("strong", {}, `Round ${round}`), ` · lowest positive ${fixed(found.lowest, 3)} · `, above));
    const tiles = node("ol", { class: `tiles ${kind}`, "aria-label": `Negatives of round ${round}` });
    found.negatives.forEach((negative, index) => tiles.append(tile(kind, negative, index + 1)));
    if (found.found < found.k) {
      tiles.append(node("li", { class: "missing" }, `${plural(found.k - found.found, "slot", "slots")} of ${found.k} missing: the miner found no more`));
    }
    made.append(strip ? node("div", { class: "strip", role: "region", tabindex: "0", "aria-label": `Round ${round}` }, tiles) : tiles);
    return made;
  }

  function positives(direction, anchor) {
    const kind = store[direction].other;
    const items = anchor.positives.map((row) => data[kind][row]);
    const made = [node("h4", {}, plural(anchor.num_positives, "positive", "positives"))];
    if (kind === "texts") made.push(node("ul", { class: "captions" }, ...items.map((item) => caption(item, "li", ""))));
    else made.push(node("ul", { class: "shown" }, ...items.map((item) => node("li", {}, picture(item)))));
    if (anchor.num_positives > items.length) made.push(node("p", { class: "more" }, `and ${anchor.num_positives - items.length} more`));
    return made;
  }

  function card(direction, anchor, rounds) {
    const { anchor: own, other } = store[direction];
    const item = data[own][anchor.row];
    const who = node("div", { class: "who" });
    if (own === "images" && item.src) who.append(picture(item), node("h3", { class: "id" }, item.id));
    else if (own === "images") who.append(node("h3", { dir: "auto" }, item.id));
    else {
      who.append(caption(item, "h3", ""));
      if (item.text !== item.id) who.append(node("p", { class: "id" }, item.id));
    }
    if (anchor.hardest) who.append(node("p", { class: "tag" }, "among the hardest"));
    who.append(...positives(direction, anchor));
    const what = node("div", { class: "mined" }, ...rounds.map((round) => block(other, anchor, round, rounds.length > 1)));
    return node("li", { class: "anchor", "data-row": anchor.row }, who, what);
  }

  function words(direction, anchor, rounds) {
    const { anchor: own, other } = store[direction];
    const of = (kind, row) => `${data[kind][row].text}\n${data[kind][row].id}`;
    const negatives = rounds.flatMap((round) => (anchor.rounds[round]?.negatives ?? []).map((negative) => negative[0]));
    return [of(own, anchor.row), ...[...anchor.positives, ...negatives].map((row) => of(other, row))].join("\n").toLowerCase();
  }

  let cards = [];

  function filter() {
    const wanted = query.value.trim().toLowerCase();
    let shown = 0;
    for (const one of cards) {
      one.element.hidden = !one.words.includes(wanted) || (onlyAbove.checked && !one.above);
      if (!one.element.hidden) shown += 1;
    }
    count.textContent = cards.length ? `${shown} of ${plural(cards.length, "anchor", "anchors")}` : "";
    nothing.hidden = shown > 0;
    nothing.textContent = cards.length ? "No anchor matches; shorten the filter." : "No round has a table of this direction.";
  }

  function draw() {
    const chosen = new FormData(controls);
    const direction = chosen.get("direction");
    const mined = data.rounds.map(String).filter((round) => data.directions[direction].anchors.some((a) => a.rounds[round]));
    const rounds = chosen.get("round") === "all" ? mined : [chosen.get("round")];
    cards = data.directions[direction].anchors.map((anchor) => ({
      element: card(direction, anchor, rounds),
      words: words(direction, anchor, rounds),
      above: rounds.some((round) => anchor.rounds[round]?.above > 0),
    }));
    list.replaceChildren(...cards.map((one) => one.element));
    filter();
  }

  function choose(name, value) {
    const found = [...controls.querySelectorAll(`input[name=${name}]`)].find((input) => input.value === value);
    if (found) found.checked = true;
    return Boolean(found);
  }

  // The address remembers the choice: #t2i/3 opens text -> image, round 3.
  function fromAddress() {
    const [direction, round] = location.hash.slice(1).split("/");
    const mined = (name) => data.directions[name].anchors.length > 0;
    const last = data.rounds.map(String).filter((number) =>
      Object.values(data.directions).some(({ anchors }) => anchors.some((anchor) => anchor.rounds[number]))).pop();
    if (!choose("direction", direction)) choose("direction", !mined("i2t") && mined("t2i") ? "t2i" : "i2t");
    if (!choose("round", round)) choose("round", last ?? String(data.rounds[data.rounds.length - 1]));
    draw();
  }

  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("change", (event) => {
    if (event.target.type !== "radio") return;
    const chosen = new FormData(controls);
    history.replaceState(null, "", `#${chosen.get("direction")}/${chosen.get("round")}`);
    draw();
  });
  query.addEventListener("input", filter);
  onlyAbove.addEventListener("change", filter);
  addEventListener("hashchange", () => { if (location.hash.includes("/")) fromAddress(); });
  controls.hidden = false;
  fromAddress();
})();
