// The page put together: what the controls choose, the keyboard, and what the address remembers.
async function start() {
  const { arrays, values } = await unpack(byId("packed").textContent);
  const items = new Items(arrays, values, JSON.parse(byId("pictures").textContent));
  const verdicts = new Verdicts(values.run, values.served);
  const directions = {};
  for (const name of ["i2t", "t2i"]) if (values[name]) directions[name] = new Direction(name, arrays, values[name]);
  const charts = new Charts();
  const given = JSON.parse(byId("charts").textContent);
  drawCharts(charts, byId("overview-charts"), given.overview);
  themes(charts);
  if (!Object.keys(directions).length) return;

  const controls = byId("controls");
  const [query, onlyAbove, onlyJudged, sort, count, nothing] = ["query", "only-above", "only-judged", "sort", "count", "nothing"].map(byId);
  const detail = new Detail(byId("detail"), items, verdicts, values);
  let hub = null;
  let kept = { key: "", order: null };

  const list = new AnchorList(byId("list"), byId("space"), items, (anchor) => {
    detail.show(direction(), anchor, round());
    remember();
  });
  const chosen = (name) => new FormData(controls).get(name);
  const direction = () => directions[chosen("direction")];
  const round = () => chosen("round");

  function judged() {
    const found = new Set();
    for (const line of verdicts.lines.values()) if (line.direction === direction().name) found.add(line.anchor_id);
    return found;
  }

  function update() {
    const of = direction();
    const key = `${of.name} ${sort.value}`;
    if (kept.key !== key) kept = { key, order: sorted(of, sort.value, items, Array(of.size).keys()) };
    const wanted = query.value.trim().toLowerCase();
    const [above, having, said] = [of.at("above"), hub === null ? null : of.having(hub), onlyJudged.checked ? judged() : null];
    const item = of.at("anchor");
    const order = kept.order.filter((anchor) =>
      (!onlyAbove.checked || above[anchor] > 0) && (!having || having.has(anchor)) &&
      (!said || said.has(items.id(of.side, item[anchor]))) && (!wanted || matches(of, items, anchor, wanted)));
    byId("hub").hidden = hub === null;
    if (hub !== null) byId("hub-name").textContent = items.text(of.other, hub);
    count.textContent = `${order.length.toLocaleString("en")} of ${plural(of.size, "anchor")}`;
    nothing.hidden = order.length > 0;
    list.show(of, order);
    if (!order.length) detail.show(of, null, round());
  }

  function open(name, anchor) {
    choose("direction", name);
    hub = null;
    query.value = "";
    onlyAbove.checked = false;
    onlyJudged.checked = false;
    redraw();
    list.go(list.order.indexOf(anchor));
    byId("anchors").scrollIntoView();
    list.box.focus({ preventScroll: true });
  }

  function below() {
    const of = direction();
    const { shown, all } = drawSuspects(byId("suspects-list"), of, items, verdicts, values, (anchor) => open(of.name, anchor));
    byId("more-suspects").hidden = shown >= all || shown < shownSuspects;
    drawHubs(byId("hubs-table"), of, items, (item) => {
      hub = item;
      update();
      byId("anchors").scrollIntoView();
    });
  }

  function redraw() {
    update();
    below();
  }

  function choose(name, value) {
    const found = [...controls.querySelectorAll(`input[name=${name}]`)].find((input) => input.value === value);
    if (found) found.checked = true;
    return Boolean(found);
  }

  // The address remembers the choice: #t2i/3/ID opens that caption's negatives of round 3.
  function remember() {
    const anchor = list.anchor();
    const id = anchor === null || anchor === undefined ? "" : items.id(direction().side, direction().at("anchor")[anchor]);
    history.replaceState(null, "", `#${direction().name}/${round()}/${encodeURIComponent(id)}`);
  }

  function fromAddress() {
    const [name, number, id] = location.hash.slice(1).split("/");
    if (!(name in directions) || !choose("direction", name)) choose("direction", Object.keys(directions)[0]);
    if (!choose("round", number)) choose("round", direction().last);
    let wanted = "";
    try {
      wanted = decodeURIComponent(id ?? "");
    } catch {
      // Somebody wrote an address by hand.
    }
    redraw();
    const of = direction();
    const item = wanted ? items.ids[of.side].indexOf(wanted) : -1;
    const anchor = item < 0 ? -1 : of.at("anchor").indexOf(item);
    if (anchor >= 0) list.go(list.order.indexOf(anchor));
  }

  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("change", (event) => {
    if (event.target.name === "direction") {
      hub = null;
      redraw();
    } else if (event.target.name === "round") {
      detail.show(direction(), list.anchor(), round());
      remember();
    } else if (event.target !== query) {
      update();
    }
  });
  let typed = 0;
  query.addEventListener("input", () => {
    clearTimeout(typed);
    typed = setTimeout(update, 120);
  });
  byId("hub-clear").addEventListener("click", () => {
    hub = null;
    update();
  });
  byId("more-suspects").addEventListener("click", () => {
    shownSuspects += 48;
    below();
  });
  window.addEventListener("hashchange", fromAddress);

  const keys = {
    j: () => list.go(list.current + 1), k: () => list.go(list.current - 1), n: () => detail.step(1), p: () => detail.step(-1),
    1: () => detail.say("false_negative"), 2: () => detail.say("fine"), 3: () => detail.say("too_easy"),
    "/": () => query.focus(), "?": () => { byId("keys").open = !byId("keys").open; },
  };
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches?.("input[type=search], select, textarea");
    if (event.key === "Escape" && typing) list.box.focus();
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });

  wireVerdicts(verdicts);
  if (given.scores.length) drawCharts(charts, byId("score-charts"), given.scores);
  if (arrays["map.image"]) {
    const told = byId("map-item");
    drawMap(charts, byId("map"), arrays, (side, item) => told.replaceChildren(...[picture(items, side, item), caption(items, side, item)].filter(Boolean)), (side, item) => {
      const name = side === "image" ? "i2t" : "t2i";
      const anchor = directions[name]?.at("anchor").indexOf(item) ?? -1;
      if (anchor >= 0) open(name, anchor);
    });
  }
  controls.hidden = false;
  byId("workbench").hidden = false;
  fromAddress();
  if (values.served) await verdicts.load();
}

function wireVerdicts(verdicts) {
  const say = (text) => { byId("verdict-status").textContent = text; };
  verdicts.failed = say;
  verdicts.changed = () => {
    const of = (name) => [...verdicts.lines.values()].filter((line) => line.verdict === name).length;
    const counts = VERDICTS.map(([name, text]) => `${of(name)} ${text}`);
    byId("verdict-count").textContent = verdicts.lines.size ? `${plural(verdicts.lines.size, "verdict")}: ${counts.join(", ")}` : "no verdicts yet";
    byId("verdict-export").disabled = !verdicts.lines.size;
    byId("verdict-clear").disabled = !verdicts.lines.size;
    refresh(verdicts);
  };
  byId("verdict-export").addEventListener("click", () => {
    const link = node("a", { download: "verdicts.jsonl", href: URL.createObjectURL(new Blob([verdicts.text()], { type: "application/jsonl" })) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    say("exported verdicts.jsonl");
  });
  byId("verdict-import").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    if (!file) return;
    const { read, wrong } = verdicts.import(await file.text());
    event.target.value = "";
    say(`${plural(read, "verdict")} read${wrong ? `, ${plural(wrong, "line")} that ${wrong === 1 ? "is" : "are"} none` : ""}`);
  });
  byId("verdict-clear").addEventListener("click", () => {
    if (confirm("Take back all verdicts?")) verdicts.clear();
  });
  verdicts.changed();
}

function themes(charts) {
  byId("theme").addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
    charts.again();
  });
}

start().then(
  () => {
    performance.mark("ready");
    document.documentElement.dataset.ready = "yes";
  },
  (error) => {
    byId("nothing").hidden = false;
    byId("nothing").textContent = `This page could not be drawn: ${error.message}`;
    throw error;
  },
);
