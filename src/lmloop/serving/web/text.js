// Shows text of the model or the person safely: paragraphs, line breaks, code, plain http(s) links.
// Takes: an element and a string. Gives: child nodes; the string enters as text nodes only and never becomes markup.

const LINK = /https?:\/\/[^\s<>"'`，。；：！？、（）【】《》]+/gu;
const AFTER_LINK = new Set(".,;:!?)]}*_~");
const INLINE_CODE = /`([^`\n]+)`/gu;

const shown = new WeakMap(); // element -> blocks it shows, so that a growing answer redraws its end only

// Splits text into paragraphs and fenced code; an open fence runs to the end.
export function blocksOf(text) {
  const blocks = [];
  let lines = [];
  let fence = null;
  const close = (kind) => {
    const content = lines.join("\n");
    if (kind === "code" || content.trim()) blocks.push({ kind, content });
    lines = [];
  };
  for (const line of text.replaceAll("\r", "").split("\n")) {
    const isFence = line.trimStart().startsWith("```");
    if (fence !== null) {
      if (isFence) {
        close("code");
        fence = null;
      } else lines.push(line);
    } else if (isFence) {
      close("paragraph");
      fence = line;
    } else if (line.trim() === "") close("paragraph");
    else lines.push(line);
  }
  close(fence === null ? "paragraph" : "code");
  return blocks;
}

export function showText(element, text, { codeLabel }) {
  const before = shown.get(element) ?? [];
  const blocks = blocksOf(text);
  let same = 0;
  while (same < before.length && same < blocks.length && isSame(before[same], blocks[same])) same++;
  while (element.childNodes.length > same) element.lastChild.remove();
  for (const block of blocks.slice(same)) {
    element.append(block.kind === "code" ? codeNode(block.content, codeLabel) : paragraphNode(block.content));
  }
  shown.set(element, blocks);
}

function isSame(one, other) {
  return one.kind === other.kind && one.content === other.content;
}

function codeNode(content, label) {
  const pre = document.createElement("pre");
  pre.tabIndex = 0; // a long line must scroll by keyboard too
  pre.setAttribute("role", "region");
  pre.setAttribute("aria-label", label);
  const code = document.createElement("code");
  code.textContent = content;
  pre.append(code);
  return pre;
}

function paragraphNode(content) {
  const paragraph = document.createElement("p");
  paragraph.dir = "auto";
  let position = 0;
  for (const match of content.matchAll(INLINE_CODE)) {
    appendLinked(paragraph, content.slice(position, match.index));
    const code = document.createElement("code");
    code.textContent = match[1];
    paragraph.append(code);
    position = match.index + match[0].length;
  }
  appendLinked(paragraph, content.slice(position));
  return paragraph;
}

function appendLinked(paragraph, content) {
  let position = 0;
  for (const match of content.matchAll(LINK)) {
    const address = withoutTail(match[0]);
    const link = linkNode(address);
    if (!link) continue;
    paragraph.append(content.slice(position, match.index), link);
    position = match.index + address.length;
  }
  paragraph.append(content.slice(position));
}

// A sentence's punctuation is not part of the address before it.
function withoutTail(address) {
  let end = address.length;
  while (end > 0 && AFTER_LINK.has(address[end - 1])) end -= 1;
  return address.slice(0, end);
}

function linkNode(address) {
  if (!URL.canParse(address)) return null;
  const { protocol } = new URL(address);
  if (protocol !== "http:" && protocol !== "https:") return null;
  const link = document.createElement("a");
  link.href = address;
  link.rel = "noopener noreferrer nofollow";
  link.target = "_blank";
  link.textContent = address;
  return link;
}
