// Decides which messages of a long chat still go to the model.
// Takes: the chat's messages and the model's context length in tokens. Gives: the index of the first message sent.
// The server counts tokens and the page cannot: it estimates from UTF-8 bytes and learns from each reply.

const FIRST_GUESS = 0.35; // tokens a byte of a small English byte-level BPE
const TEMPLATE_TOKENS = 5; // role and turn marks around one message
const RESERVED_SHARE = 0.25; // of the context, kept free for the answer at most

const encoder = new TextEncoder();

export function bytesOf(text) {
  return encoder.encode(text).length;
}

export class TokenEstimate {
  constructor(tokensPerByte = FIRST_GUESS) {
    this.tokensPerByte = tokensPerByte;
  }

  count(turns) {
    const bytes = turns.reduce((sum, turn) => sum + bytesOf(turn.content), 0);
    return Math.ceil(bytes * this.tokensPerByte + (turns.length + 1) * TEMPLATE_TOKENS);
  }

  // After an answer: the server says how many tokens the prompt had.
  learn(turns, promptTokens) {
    const bytes = turns.reduce((sum, turn) => sum + bytesOf(turn.content), 0);
    if (bytes < 40) return; // too short to say anything
    this.tokensPerByte = Math.max(0.02, (promptTokens - turns.length * TEMPLATE_TOKENS) / bytes);
  }

  // After a refusal: the prompt had at least as many tokens as the context holds.
  raise(turns, contextLength) {
    const counted = this.count(turns);
    this.tokensPerByte *= Math.max(1.1, contextLength ? contextLength / counted : 0);
  }
}

// What is sent, from message `start` on: unanswered messages left out, neighbours of one role joined.
export function turnsOf(messages, { start, system }) {
  const turns = system ? [{ role: "system", content: system }] : [];
  for (const message of messages.slice(start)) {
    if (message.status === "failed" || message.content === "") continue;
    const last = turns.at(-1);
    if (last?.role === message.role) last.content += `\n${message.content}`;
    else turns.push({ role: message.role, content: message.content });
  }
  return turns;
}

// The start after the oldest exchange was dropped; null when only the last question is left.
export function withoutOldest(messages, start) {
  const lastQuestion = messages.findLastIndex((message) => message.role === "user");
  const next = messages.findIndex((message, index) => index > start && message.role === "user");
  return next < 0 || next > lastQuestion ? null : next;
}

// The first start, from `start` on, whose estimate leaves room for an answer.
export function fittingStart(messages, { start, system, estimate, contextLength, maxTokens }) {
  if (!contextLength) return start;
  const room = contextLength - Math.min(maxTokens, Math.floor(contextLength * RESERVED_SHARE));
  while (estimate.count(turnsOf(messages, { start, system })) > room) {
    const next = withoutOldest(messages, start);
    if (next === null) break;
    start = next;
  }
  return start;
}
