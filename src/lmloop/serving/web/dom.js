// Makes elements without markup strings.
// Takes: a tag, attributes, children. Gives: the element; text goes in as text nodes.

const SVG = "http://www.w3.org/2000/svg";

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export function iconButton(name, label, onClick) {
  const button = make("button", { type: "button", class: `tool ${name}`, title: label }, icon(name));
  button.setAttribute("aria-label", label);
  button.addEventListener("click", onClick);
  return button;
}

export function textButton(label, onClick, className = "plain") {
  const button = make("button", { type: "button", class: className }, label);
  button.addEventListener("click", onClick);
  return button;
}

// A textarea as tall as its text, up to the limit that the style sheet sets.
export function fitHeight(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}

export async function copyText(text) {
  if (navigator.clipboard && window.isSecureContext) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = make("textarea", { class: "unseen", "aria-hidden": "true" });
  const before = document.activeElement;
  area.value = text;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy"); // plain http has no clipboard interface
  area.remove();
  before?.focus();
  if (!copied) throw new Error("copying was refused");
}
