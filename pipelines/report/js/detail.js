// One anchor: its positives, what was mined in a round with verdicts, what rules dropped, and how it changed.
class Detail {
  constructor(place, items, verdicts, values) {
    Object.assign(this, { place, items, verdicts, values });
    this.focused = 0;
    place.addEventListener("click", (event) => this.clicked(event));
    place.addEventListener("focusin", (event) => {
      const tile = event.target.closest(".tile");
      if (tile) this.focused = this.tiles().indexOf(tile);
    });
  }

  show(direction, anchor, round) {
    Object.assign(this, { direction, anchor, round, focused: 0 });
    this.place.replaceChildren(...(anchor === null ? [] : this.parts()));
    this.place.scrollTop = 0;
  }

  parts() {
    const { items, direction, anchor } = this;
    const item = direction.at("anchor")[anchor];
    const title = node("h3", { dir: "auto", id: "anchor-title", tabindex: "-1" }, items.text(direction.side, item));
    const shown = picture(items, direction.side, item, direction.side === "image" ? "portrait" : "aside");
    const who = node("div", { class: "who" }, shown, node("div", {}, title, node("p", { class: "id", dir: "auto" }, items.id(direction.side, item))));
    return [who, this.positives(), this.mined(), this.cut(), this.history()].filter(Boolean);
  }

  positives() {
    const { items, direction } = this;
    const { items: own, all } = direction.positives(this.anchor);
    const list = node("ul", { class: `positives ${direction.other}` });
    for (const item of own) {
      const one = direction.other === "image" ? picture(items, "image", item) : caption(items, "text", item);
      list.append(node("li", {}, one));
    }
    const more = all > own.length ? node("p", { class: "note" }, `and ${all - own.length} more`) : null;
    return node("section", { "aria-label": "Positives" }, node("h4", {}, plural(all, "positive")), list, more);
  }

  mined() {
    const { direction, round } = this;
    const block = direction.block(round, this.anchor);
    const made = node("section", { "aria-label": `Negatives of round ${round}` });
    const mined = direction.rounds.map(String).includes(round);
    if (!block) {
      const why = mined ? "this page holds the other rounds of some anchors alone; it does not of this one" : "nothing mined: it trained on negatives of the batch alone";
      made.append(node("h4", {}, `Round ${round}`), node("p", { class: "note" }, `${why[0].toUpperCase()}${why.slice(1)}.`));
      return made;
    }
    const shown = block.negatives.length < block.found ? `, the first ${block.negatives.length} shown` : "";
    made.append(
      node("h4", {}, `${plural(block.found, "negative")} kept in round ${round}${shown}`),
      node("p", { class: "note" }, `lowest positive ${fixed(block.lowest)} · `,
        node("span", { class: block.above ? "much" : "" }, `${block.above} of ${block.found} above it`)),
    );
    const tiles = node("ol", { class: `tiles ${direction.other}` });
    block.negatives.forEach((negative) => tiles.append(this.tile(negative)));
    if (block.found < direction.k) {
      tiles.append(node("li", { class: "missing" }, `${plural(direction.k - block.found, "slot")} of ${direction.k} missing: no more were found`));
    }
    made.append(tiles);
    return made;
  }

  tile(negative) {
    const { items, direction } = this;
    const id = items.id(direction.other, negative.item);
    const moved = negative.before === null ? "" : negative.before === 0 ? "new" : negative.before === negative.rank ? "" : `was ${negative.before}`;
    const what = node("div", { class: "what" }, picture(items, direction.other, negative.item));
    if (direction.other === "text" || items.texts) what.append(caption(items, direction.other, negative.item));
    const looked = this.values.looked && negative.suspicion !== null;
    const likeness = looked ? node("span", { class: "likeness" }, hush("likeness to the positives "), `≈ ${fixed(negative.suspicion, 2)}`) : null;
    return node(
      "li",
      { class: `tile${negative.hardness > 0 ? " outscores" : ""}`, "data-id": id },
      node("div", { class: "rank" }, node("span", {}, hush("rank "), String(negative.rank)), node("span", {}, moved)),
      what,
      node("div", { class: "figure" }, node("span", { class: "score" }, hush("score "), fixed(negative.score)), chip(negative.hardness, this.values.bands), likeness),
      this.buttons(id),
    );
  }

  buttons(id) {
    const { direction, items } = this;
    const anchor = items.id(direction.side, direction.at("anchor")[this.anchor]);
    return verdictButtons(this.verdicts, direction.name, anchor, id);
  }

  cut() {
    const { direction, items } = this;
    const found = this.round === direction.last ? direction.cut(this.anchor) : null;
    const all = direction.at("dropped")[this.anchor];
    if (!found || !all) return null;
    const rows = found.map((one) => {
      const what = node("div", { class: "what" }, picture(items, direction.other, one.item));
      if (direction.other === "text" || items.texts) what.append(caption(items, direction.other, one.item));
      return node("tr", {}, node("td", { class: "number" }, String(one.rank)), node("td", {}, what),
        node("td", { class: "number" }, fixed(one.score)), node("td", { class: "number" }, chip(one.hardness, this.values.bands)),
        node("td", { dir: "auto" }, one.reason));
    });
    return node(
      "details",
      { class: "cut" },
      node("summary", {}, `${plural(all, "candidate")} dropped by rules${found.length < all ? `, ${found.length} shown` : ""}`),
      table(["rank", "candidate", "score", "hardness", "reason"], rows),
    );
  }

  // The ranks of everything that was among the first of any round.
  history() {
    const { direction, items } = this;
    const rounds = direction.rounds.map(String);
    const blocks = rounds.map((round) => direction.block(round, this.anchor));
    if (rounds.length < 2 || blocks.some((block) => !block)) return null;
    const ranks = new Map();
    blocks.forEach((block, at) => {
      for (const { item, rank } of block.negatives) {
        if (!ranks.has(item)) ranks.set(item, new Array(rounds.length).fill(null));
        ranks.get(item)[at] = rank;
      }
    });
    const rows = [...ranks].map(([item, found]) =>
      node("tr", {}, node("td", {}, node("div", { class: "what" }, picture(items, direction.other, item), direction.other === "text" || items.texts ? caption(items, direction.other, item) : null)),
        ...found.map((rank, at) => node("td", { class: `number${rank === null ? " none" : ""}` }, rank === null ? `> ${blocks[at].negatives.length}` : String(rank)))));
    return node(
      "details",
      { class: "history" },
      node("summary", {}, "How the negatives changed over the rounds"),
      table(["negative", ...rounds.map((round) => `round ${round}`)], rows),
    );
  }

  tiles() {
    return [...this.place.querySelectorAll(".tile")];
  }

  // Move among the negatives, for the keyboard.
  step(by) {
    const tiles = this.tiles();
    if (!tiles.length) return;
    const inside = document.activeElement?.closest?.(".tile") !== null && this.place.contains(document.activeElement);
    const to = inside ? Math.min(tiles.length - 1, Math.max(0, this.focused + by)) : Math.min(this.focused, tiles.length - 1);
    this.focused = to;
    tiles[to].querySelector("button").focus({ preventScroll: true });
    tiles[to].scrollIntoView({ block: "nearest" });
  }

  // Say something of the negative that has the focus, or of the first.
  say(verdict) {
    const tile = this.tiles()[this.focused];
    const button = tile?.querySelector(`button[data-verdict=${verdict}]`);
    if (button) button.click();
  }

  clicked(event) {
    const button = event.target.closest("button[data-verdict]");
    if (button) pressed(this.verdicts, button);
  }
}

function table(heads, rows) {
  const head = node("tr", {}, ...heads.map((text) => node("th", { scope: "col" }, text)));
  return node("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": heads.join(", ") }, node("table", {}, node("thead", {}, head), node("tbody", {}, ...rows)));
}

function verdictButtons(verdicts, direction, anchor, negative) {
  const said = verdicts.of(direction, anchor, negative);
  const group = node("div", { class: "verdict", role: "group", "aria-label": "Verdict", "data-direction": direction, "data-anchor": anchor, "data-negative": negative });
  for (const [name, text, key] of VERDICTS) {
    group.append(node("button", { type: "button", "data-verdict": name, "aria-pressed": String(said === name), title: `${text} (key ${key})` }, text));
  }
  return group;
}

// A button says its verdict; pressed again, it takes it back.
function pressed(verdicts, button) {
  const { direction, anchor, negative } = button.parentElement.dataset;
  const again = button.getAttribute("aria-pressed") === "true";
  verdicts.say(direction, anchor, negative, again ? "none" : button.dataset.verdict);
  refresh(verdicts);
}

// All buttons of the page, as things stand.
function refresh(verdicts) {
  for (const group of document.querySelectorAll(".verdict")) {
    const { direction, anchor, negative } = group.dataset;
    const said = verdicts.of(direction, anchor, negative);
    for (const button of group.children) button.setAttribute("aria-pressed", String(button.dataset.verdict === said));
  }
}
