// What the page holds: columns of numbers and the items they name (see browser.py and packing.py), pictures, charts.
const byId = (id) => document.getElementById(id);
const NONE = 65535;

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at += 1) bytes[at] = text.charCodeAt(at);
  return bytes;
}

const unzipped = (base64) =>
  new Response(new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("gzip")));

async function unpack(base64) {
  const buffer = await unzipped(base64).arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const kinds = { u1: Uint8Array, u2: Uint16Array, i4: Int32Array, f4: Float32Array };
  const arrays = {};
  for (const [name, [kind, offset, size]] of Object.entries(head.arrays)) {
    arrays[name] = new kinds[kind](buffer, 4 + length + offset, size);
  }
  return { arrays, values: head.values };
}

// One direction: its columns by short name, and what can be asked of an anchor (a position in the list).
class Direction {
  constructor(name, arrays, values) {
    this.name = name;
    [this.side, this.other] = name === "i2t" ? ["image", "text"] : ["text", "image"];
    Object.assign(this, values);
    this.at = (column) => arrays[`${name}.${column}`];
    this.size = this.at("anchor").length;
    this.places = new Map();
    this.last = String(this.rounds[this.rounds.length - 1]);
  }

  scoreOf(scaled) {
    return this.score[0] + (scaled / (NONE - 1)) * (this.score[1] - this.score[0]);
  }

  suspicionOf(scaled) {
    return scaled === NONE ? null : this.suspicion[0] + (scaled / (NONE - 1)) * (this.suspicion[1] - this.suspicion[0]);
  }

  // Where an anchor stands in the arrays of a round; -1 when the page was told nothing of it.
  placeIn(block, anchor) {
    if (!this.places.has(block)) {
      const place = new Int32Array(this.size).fill(-1);
      const who = this.at(`${block}.who`);
      for (let at = 0; at < who.length; at += 1) place[who[at]] = at;
      this.places.set(block, place);
    }
    return this.places.get(block)[anchor];
  }

  // What the page knows of an anchor in a round: its negatives with rank, score, hardness and the rank before; or null.
  block(round, anchor) {
    let name = round;
    let place = name in this.depths ? this.placeIn(name, anchor) : -1;
    if (place < 0 && round === this.last && "all" in this.depths) {
      name = "all";
      place = this.placeIn(name, anchor);
    }
    if (place < 0) return null;
    const depth = this.depths[name];
    const [items, scores, before, seen] = ["items", "scores", "before", "suspicion"].map((key) => this.at(`${name}.${key}`));
    const lowest = this.at(`${name}.lowest`)[place];
    const negatives = [];
    for (let rank = 0; rank < depth; rank += 1) {
      const cell = place * depth + rank;
      if (items[cell] < 0) break;
      const score = this.scoreOf(scores[cell]);
      negatives.push({
        item: items[cell], rank: rank + 1, score, hardness: score - lowest,
        before: before[cell] === NONE ? null : before[cell], suspicion: seen ? this.suspicionOf(seen[cell]) : null,
      });
    }
    return { negatives, lowest, found: this.at(`${name}.found`)[place], above: this.at(`${name}.above`)[place] };
  }

  positives(anchor) {
    const at = this.at("positives.at");
    return { items: [...this.at("positives").subarray(at[anchor], at[anchor + 1])], all: this.at("positives.all")[anchor] };
  }

  // What rules dropped of an anchor, nearest first; null when the page was not told.
  cut(anchor) {
    if (!this.rules.length) return null;
    const place = this.placeIn("cut", anchor);
    if (place < 0) return null;
    const at = this.at("cut.at");
    const lowest = this.at("lowest")[anchor];
    const found = [];
    for (let cell = at[place]; cell < at[place + 1]; cell += 1) {
      const score = this.scoreOf(this.at("cut.scores")[cell]);
      found.push({
        item: this.at("cut.items")[cell], rank: this.at("cut.ranks")[cell] + 1, score, hardness: score - lowest,
        reason: this.rules[this.at("cut.rules")[cell]],
      });
    }
    return found;
  }

  // Anchors that have an item among the negatives the page knows of the last round.
  having(item) {
    const found = new Set();
    for (const name of [this.last, "all"]) {
      if (!(name in this.depths)) continue;
      const items = this.at(`${name}.items`);
      const who = this.at(`${name}.who`);
      for (let cell = items.indexOf(item); cell >= 0; cell = items.indexOf(item, cell + 1)) {
        found.add(who[Math.floor(cell / this.depths[name])]);
      }
    }
    return found;
  }
}

class Items {
  constructor(arrays, values, pictures) {
    this.ids = { image: values["image.id"], text: values["text.id"] };
    this.texts = values.text.length ? values.text : null;
    this.seen = arrays["text.seen"];
    this.captions = arrays["image.caption"];
    this.pictures = pictures;
  }

  id(side, item) {
    return this.ids[side][item];
  }

  // A text's caption, or an image's most specific one; its id where nobody brought captions.
  text(side, item) {
    if (!this.texts) return this.ids[side][item];
    return this.texts[side === "text" ? item : this.captions[item]];
  }

  // The address of a picture: an image's own, or of the first image a text belongs to; "" where there is none.
  picture(side, item) {
    const image = side === "image" ? item : this.seen[item];
    const found = image < 0 ? undefined : this.pictures[image];
    return found ? `data:image/webp;base64,${found}` : "";
  }
}
