// The list of anchors. Only rows in sight exist: the others are height alone, so that 100,000 scroll as ten do.
const ROW = 56;
const AROUND = 8;

class AnchorList {
  constructor(box, space, items, chosen) {
    Object.assign(this, { box, space, items, chosen });
    this.pool = [];
    this.order = new Int32Array(0);
    this.current = 0;
    this.waiting = false;
    this.top = 0;
    this.settled = 0;
    box.addEventListener("scroll", () => this.later(), { passive: true });
    box.addEventListener("keydown", (event) => this.key(event));
    space.addEventListener("click", (event) => {
      const row = event.target.closest("[role=option]");
      if (row) this.go(Number(row.dataset.at), true);
    });
    new ResizeObserver(() => this.later()).observe(box);
  }

  // Show anchors (positions, in this order) of a direction; the one that was current stays so if it is among them.
  show(direction, order) {
    const kept = this.direction === direction ? order.indexOf(this.anchor() ?? -1) : -1;
    this.direction = direction;
    this.order = order;
    this.space.style.height = `${Math.max(order.length, 1) * ROW}px`;
    this.pool.forEach((row) => { row.dataset.at = "-1"; });
    this.box.scrollTop = 0;
    this.go(Math.max(kept, 0));
  }

  anchor() {
    return this.order.length ? this.order[this.current] : null;
  }

  go(at, focus = false) {
    this.current = Math.min(Math.max(at, 0), Math.max(this.order.length - 1, 0));
    const top = this.current * ROW;
    const { scrollTop, clientHeight } = this.box;
    if (top < scrollTop) this.box.scrollTop = top;
    else if (top + ROW > scrollTop + clientHeight) this.box.scrollTop = top + ROW - clientHeight;
    this.draw();
    if (focus) this.box.focus({ preventScroll: true });
    this.chosen(this.anchor());
  }

  key(event) {
    const page = Math.max(1, Math.floor(this.box.clientHeight / ROW) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -this.order.length, End: this.order.length };
    if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.go(this.current + steps[event.key]);
  }

  later() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
    });
  }

  draw() {
    const { scrollTop, clientHeight } = this.box;
    const first = Math.max(0, Math.floor(scrollTop / ROW) - AROUND);
    const last = Math.min(this.order.length, Math.ceil((scrollTop + clientHeight) / ROW) + AROUND);
    while (this.pool.length < last - first) this.pool.push(this.space.appendChild(this.row()));
    // Past rows that fly by pictures would be read in vain: they wait until the list comes to rest.
    const flying = Math.abs(first - this.top) > last - first;
    this.top = first;
    clearTimeout(this.settled);
    this.settled = setTimeout(() => this.pool.forEach((row) => this.depict(row)), 80);
    // Row n of the list is always in the same place of the pool, so that scrolling redraws what comes into sight alone.
    const size = this.pool.length;
    const used = new Set();
    for (let at = first; at < last; at += 1) {
      const row = this.pool[at % size];
      used.add(row);
      if (row.dataset.at !== String(at)) this.fill(row, at);
      if (!flying) this.depict(row);
      const selected = String(at === this.current);
      if (row.getAttribute("aria-selected") !== selected) row.setAttribute("aria-selected", selected);
    }
    for (const row of this.pool) if (row.hidden === used.has(row)) row.hidden = !row.hidden;
    const active = this.order.length ? `row-${this.current}` : "";
    if (this.box.getAttribute("aria-activedescendant") !== active) this.box.setAttribute("aria-activedescendant", active);
  }

  row() {
    const text = node("span", { class: "row-text", dir: "auto" });
    const facts = node("span", { class: "row-facts" });
    const image = node("img", { class: "thumb", alt: "", decoding: "async" });
    return node("div", { role: "option", class: "row", "data-at": "-1" }, image, node("span", { class: "row-words" }, text, facts), node("span", { class: "row-mark" }));
  }

  fill(row, at) {
    const { direction, items } = this;
    const anchor = this.order[at];
    const item = direction.at("anchor")[anchor];
    const [image, words, mark] = row.children;
    row.dataset.at = String(at);
    row.id = `row-${at}`;
    row.setAttribute("aria-posinset", String(at + 1));
    row.setAttribute("aria-setsize", String(this.order.length));
    row.style.transform = `translateY(${at * ROW}px)`;
    row.picture = items.picture(direction.side, item);
    image.hidden = !row.picture;
    image.removeAttribute("src");
    words.children[0].textContent = items.text(direction.side, item).slice(0, 200);
    const margin = direction.at("margin")[anchor];
    const above = direction.at("above")[anchor];
    const dropped = direction.at("dropped")[anchor];
    const facts = [margin < -1e8 ? "no negatives" : `${above} above`, ...(dropped ? [`${dropped} dropped`] : [])];
    words.children[1].textContent = facts.join(" · ");
    mark.textContent = margin < -1e8 ? "" : signed(margin, 2);
    mark.className = `row-mark${margin > 0 ? " much" : ""}`;
  }

  // The picture of a row, once.
  depict(row) {
    if (row.hidden || !row.picture) return;
    row.firstChild.src = row.picture;
    row.picture = "";
  }
}

// The orders a list can have: by a column, largest first, ties by position; and by id.
function sorted(direction, by, items, anchors) {
  const order = Int32Array.from(anchors);
  if (by === "id") {
    const ids = items.ids[direction.side];
    const item = direction.at("anchor");
    const compare = new Intl.Collator("en", { numeric: true }).compare;
    return order.sort((a, b) => compare(ids[item[a]], ids[item[b]]) || a - b);
  }
  const column = direction.at(by);
  const value = by === "suspicion" ? (at) => (column[at] === NONE ? -1 : column[at]) : (at) => column[at];
  return order.sort((a, b) => value(b) - value(a) || a - b);
}

// Whether an anchor's own words or id, or those of its positives, hold what is looked for.
function matches(direction, items, anchor, wanted) {
  const has = (side, item) => items.text(side, item).toLowerCase().includes(wanted) || items.id(side, item).toLowerCase().includes(wanted);
  if (has(direction.side, direction.at("anchor")[anchor])) return true;
  const at = direction.at("positives.at");
  const positives = direction.at("positives");
  for (let cell = at[anchor]; cell < at[anchor + 1]; cell += 1) if (has(direction.other, positives[cell])) return true;
  return false;
}
