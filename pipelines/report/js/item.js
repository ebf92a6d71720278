// Small pieces of the page. Everything of the dataset goes through textContent and known attributes, never as markup.
function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const plural = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
const fixed = (value, decimals = 3) => (value < 0 ? "−" : "") + Math.abs(value).toFixed(decimals);
const hush = (text) => node("span", { class: "hush" }, text);

function signed(value, decimals = 3) {
  const text = Math.abs(value).toFixed(decimals);
  return Number(text) === 0 ? text : (value < 0 ? "−" : "+") + text;
}

// A picture; where there is none, the id.
function picture(items, side, item, name = "picture") {
  const source = items.picture(side, item);
  if (!source) return side === "image" ? node("span", { class: "unseen", dir: "auto" }, items.id(side, item)) : null;
  const text = items.text(side, item);
  return node("img", { class: name, src: source, alt: side === "image" ? text : "", title: text, decoding: "async" });
}

const caption = (items, side, item, tag = "span") =>
  node(tag, { class: "caption", dir: "auto", title: items.text(side, item) }, items.text(side, item));

function chip(hardness, step) {
  const steps = Math.min(2, Math.floor(Math.abs(hardness) / step));
  const made = node("span", { class: `chip ${hardness > 0 ? "above" : "below"}-${steps}` });
  made.append(hush("hardness "), (hardness > 0 ? "▲ " : "") + signed(hardness));
  if (hardness > 0) made.append(hush(", above the lowest positive"));
  return made;
}
