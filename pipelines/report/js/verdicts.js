// What was said of negatives: kept by this browser, by the server where one serves the page, and exported as a file.
const VERDICTS = [
  ["false_negative", "false negative", "1"],
  ["fine", "fine", "2"],
  ["too_easy", "too easy", "3"],
];

const DIRECTIONS = ["i2t", "t2i", "i2i", "t2t"];

class Verdicts {
  constructor(run, served) {
    this.served = served;
    this.name = `quintain verdicts ${run}`;
    this.lines = new Map();
    this.changed = () => {};
    this.failed = () => {};
    this.saving = Promise.resolve();
    this.waiting = []; // lines that the server has not taken yet
    if (served) return;
    this.remembered();
    // Another tab of this page keeps its verdicts in the same place.
    window.addEventListener("storage", (event) => {
      if (event.key !== this.name && event.key !== null) return;
      this.lines.clear();
      this.remembered();
      this.changed();
    });
  }

  key(direction, anchor, negative) {
    return JSON.stringify([direction, anchor, negative]);
  }

  of(direction, anchor, negative) {
    return this.lines.get(this.key(direction, anchor, negative))?.verdict ?? "none";
  }

  // The verdict, or "none" to take one back.
  say(direction, anchor, negative, verdict) {
    const line = { direction, anchor_id: anchor, negative_id: negative, verdict, at: new Date().toISOString() };
    this.keep(line);
    this.changed();
    if (this.served) {
      this.saving = this.saving.then(() => this.save([line]));
    } else {
      this.remember();
    }
  }

  keep(line) {
    const key = this.key(line.direction, line.anchor_id, line.negative_id);
    if (line.verdict === "none") this.lines.delete(key);
    else this.lines.set(key, line);
  }

  // Lines of a file; what is not a verdict is counted.
  read(text) {
    const known = new Set([...VERDICTS.map(([name]) => name), "none"]);
    const lines = [];
    let wrong = 0;
    for (const line of text.split("\n").filter((each) => each.trim())) {
      try {
        const { direction, anchor_id, negative_id, verdict, at } = JSON.parse(line);
        const strings = [direction, anchor_id, negative_id].every((each) => typeof each === "string" && each);
        if (!strings || !known.has(verdict) || !DIRECTIONS.includes(direction)) throw new Error("not a verdict");
        lines.push({ direction, anchor_id, negative_id, verdict, ...(typeof at === "string" ? { at } : {}) });
      } catch {
        wrong += 1;
      }
    }
    return { lines, wrong };
  }

  import(text) {
    const { lines, wrong } = this.read(text);
    lines.forEach((line) => this.keep(line));
    this.changed();
    if (this.served && lines.length) this.saving = this.saving.then(() => this.save(lines));
    else this.remember();
    return { read: lines.length, wrong };
  }

  clear() {
    const taken = [...this.lines.values()].map((line) => ({ ...line, verdict: "none" }));
    this.lines.clear();
    this.changed();
    if (this.served && taken.length) this.saving = this.saving.then(() => this.save(taken));
    else this.remember();
  }

  text() {
    return [...this.lines.values()].map((line) => `${JSON.stringify(line)}\n`).join("");
  }

  async load() {
    const answer = await fetch("verdicts");
    if (!answer.ok) throw new Error(`the server says ${answer.status}`);
    this.read(await answer.text()).lines.forEach((line) => this.keep(line));
    this.changed();
  }

  // What did not reach the server goes with the next lines; what it will never take does not.
  async save(lines) {
    let most = 200;
    const late = this.waiting.length > 0;
    this.waiting.push(...lines);
    try {
      while (this.waiting.length) {
        const part = this.waiting.slice(0, most);
        const body = part.map((line) => `${JSON.stringify(line)}\n`).join("");
        const answer = await fetch("verdicts", { method: "POST", headers: { "Content-Type": "application/jsonl" }, body });
        if (answer.status === 413 && part.length > 1) {
          most = Math.ceil(part.length / 2);
          continue;
        }
        if (answer.ok || answer.status === 400 || answer.status === 413) this.waiting.splice(0, part.length);
        if (!answer.ok) throw new Error((await answer.text()).trim());
      }
      if (late) this.failed("saved");
    } catch (error) {
      const left = this.waiting.length ? ` ${plural(this.waiting.length, "verdict")} will be sent with the next one; export all before you leave this page.` : "";
      this.failed(`not saved: ${error.message}.${left}`);
    }
  }

  remember() {
    try {
      localStorage.setItem(this.name, this.text());
    } catch {
      this.failed("this browser keeps nothing for pages from disk: export the verdicts before you close it");
    }
  }

  remembered() {
    try {
      this.read(localStorage.getItem(this.name) ?? "").lines.forEach((line) => this.keep(line));
    } catch {
      // A browser that keeps nothing says so when there is something to keep.
    }
  }
}
