// The chat and the person's choices, kept in the browser (text only).
// Takes: localStorage, which may be missing, full or hold anything. Gives: Chat, Settings and single remembered values.

const ROLES = new Set(["user", "assistant"]);
const SETTING_NAMES = ["temperature", "top_p", "max_tokens", "seed", "system"];

export function recall(name, fallback = null) {
  try {
    return JSON.parse(localStorage.getItem(`lmloop.${name}`)) ?? fallback;
  } catch {
    return fallback;
  }
}

export function remember(name, value) {
  try {
    localStorage.setItem(`lmloop.${name}`, JSON.stringify(value));
  } catch {
    // Private mode or a full store: the chat goes on, a reload forgets it.
  }
}

// 96 random bits as text. Not randomUUID, which a page has over HTTPS only.
export function randomId() {
  const numbers = crypto.getRandomValues(new Uint32Array(3));
  return Array.from(numbers, (number) => number.toString(16).padStart(8, "0")).join("");
}

// Stands for the person at this browser: made once, kept here, and only ever sent to the server as it is.
export function userId() {
  let id = recall("user");
  if (typeof id !== "string" || !/^[0-9a-f]{24}$/.test(id)) {
    id = randomId();
    remember("user", id);
  }
  return id;
}

// A message's status: done, streaming, stopped (by the person), broken (in mid-answer), failed (no answer came).
export function question(id, content) {
  return { id, role: "user", content, status: "done" };
}

export function answer(id) {
  return { id, role: "assistant", content: "", status: "streaming", rating: null };
}

export class Chat {
  constructor({ messages = [], start = 0, tokensPerByte, session = randomId() } = {}) {
    this.messages = messages;
    this.session = session; // the same for all requests of this chat, so that one model answers them
    this.start = Math.min(start, messages.length); // the first message that the model still sees
    this.tokensPerByte = tokensPerByte;
  }

  // With `settle`, an answer that was under way counts as broken off: nobody is writing it any more.
  static load({ settle }) {
    const kept = recall("chat", {});
    const messages = Array.isArray(kept.messages) ? kept.messages.filter(isMessage) : [];
    messages.forEach((message, index) => (message.id = index));
    const chat = new Chat({
      messages,
      start: Number.isInteger(kept.start) && kept.start > 0 ? kept.start : 0,
      tokensPerByte: kept.tokensPerByte > 0 ? kept.tokensPerByte : undefined,
      session: typeof kept.session === "string" ? kept.session : undefined,
    });
    if (settle) chat.settleUnfinished();
    return chat;
  }

  save() {
    remember("chat", {
      messages: this.messages,
      start: this.start,
      tokensPerByte: this.tokensPerByte,
      session: this.session,
    });
  }

  get last() {
    return this.messages.at(-1);
  }

  add(make, ...values) {
    const message = make((this.last?.id ?? -1) + 1, ...values);
    this.messages.push(message);
    return message;
  }

  removeLast() {
    this.messages.pop();
    while (this.start > 0 && this.messages[this.start]?.role !== "user") this.start -= 1;
  }

  settleUnfinished() {
    const last = this.last;
    if (last?.status !== "streaming") return;
    if (last.content) last.status = "broken";
    else {
      this.removeLast();
      if (this.last) this.last.status = "failed";
    }
  }
}

function isMessage(value) {
  return ROLES.has(value?.role) && typeof value.content === "string" && typeof value.status === "string";
}

// What the person set; what was not set follows the model's defaults.
export class Settings {
  constructor() {
    this.defaults = { temperature: 0.7, top_p: 0.9, max_tokens: 256, seed: null, system: "" };
    this.longest = 256;
    this.contextLength = null;
    this.chosen = {};
    const kept = recall("settings", {});
    for (const name of SETTING_NAMES) if (name in kept) this.chosen[name] = kept[name];
  }

  takeInfo({ defaults, max_tokens, context_length }) {
    this.defaults = { ...this.defaults, ...defaults };
    this.longest = max_tokens ?? this.defaults.max_tokens;
    this.contextLength = context_length ?? null;
  }

  get(name) {
    const value = this.chosen[name] ?? this.defaults[name];
    return name === "max_tokens" ? Math.min(value, this.longest) : value;
  }

  set(name, value) {
    this.chosen[name] = value;
    remember("settings", this.chosen);
  }

  reset() {
    this.chosen = {};
    remember("settings", {});
  }

  // The fields of a request that come from settings.
  get request() {
    const fields = {
      temperature: this.get("temperature"),
      top_p: this.get("top_p"),
      max_tokens: this.get("max_tokens"),
    };
    if (Number.isInteger(this.get("seed"))) fields.seed = this.get("seed");
    return fields;
  }
}
