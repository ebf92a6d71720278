// The two lists below the browser: what is most likely to be no negative at all, and what is a negative of the most.
function drawSuspects(place, direction, items, verdicts, values, open) {
  const suspects = direction.at("suspects");
  const depth = 24;
  const made = [];
  for (let at = 0; at < suspects.length && made.length < shownSuspects; at += 2) {
    const [anchor, rank] = [suspects[at], suspects[at + 1]];
    const negative = direction.block(direction.last, anchor)?.negatives[rank];
    if (!negative || rank >= depth) continue;
    const item = direction.at("anchor")[anchor];
    const id = items.id(direction.side, item);
    const both = [[direction.side, item, "anchor"], [direction.other, negative.item, `negative, rank ${negative.rank}`]].map(([side, one, name]) => {
      const words = side === "text" || items.texts ? caption(items, side, one) : null;
      return node("div", { class: "end" }, node("span", { class: "note" }, name), picture(items, side, one), words);
    });
    const go = node("button", { type: "button", class: "plain", "data-anchor": String(anchor) }, "open");
    go.append(hush(` anchor ${items.text(direction.side, item).slice(0, 80)}`));
    const likeness = values.looked ? node("span", { class: "likeness" }, hush("likeness "), `≈ ${fixed(negative.suspicion, 2)}`) : null;
    made.push(node("li", { class: "suspect" }, node("div", { class: "ends" }, ...both),
      node("div", { class: "figure" }, node("span", { class: "score" }, hush("score "), fixed(negative.score)), chip(negative.hardness, values.bands), likeness, go),
      verdictButtons(verdicts, direction.name, id, items.id(direction.other, negative.item))));
  }
  place.replaceChildren(...made);
  place.onclick = (event) => {
    const button = event.target.closest("button");
    if (button?.dataset.verdict) pressed(verdicts, button);
    else if (button) open(Number(button.dataset.anchor));
  };
  return { shown: made.length, all: suspects.length / 2 };
}

let shownSuspects = 24;

function drawHubs(place, direction, items, filterBy) {
  const hubs = direction.at("hubs");
  const [times, first] = [direction.at("hubs.times"), direction.at("hubs.first")];
  const rows = [...hubs].map((item, at) => {
    const go = node("button", { type: "button", class: "plain", "data-item": String(item) }, "show anchors");
    go.append(hush(` that have ${items.text(direction.other, item).slice(0, 80)}`));
    const words = direction.other === "text" || items.texts ? caption(items, direction.other, item) : null;
    return node("tr", {}, node("td", {}, node("div", { class: "what" }, picture(items, direction.other, item), words)),
      node("td", { class: "number" }, times[at].toLocaleString("en")),
      node("td", { class: "number" }, `${((100 * times[at]) / direction.of).toFixed(1)} %`),
      node("td", { class: "number" }, first[at].toLocaleString("en")), node("td", {}, go));
  });
  place.replaceChildren(table([direction.other === "text" ? "caption" : "image", "negative of", "of all anchors", "hardest of", "in the list above"], rows));
  place.onclick = (event) => {
    const button = event.target.closest("button");
    if (button) filterBy(Number(button.dataset.item));
  };
}
