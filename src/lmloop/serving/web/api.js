// Talks to the server: what is served, is it ready, one streamed answer, one rating.
// Takes: plain objects. Gives: plain objects; throws Refused (the server said no) or ConnectionLost.

const SILENCE_MS = 90_000;
const CONSENT_HEADER = "X-Lmloop-Consent";
const SESSION_HEADER = "X-Lmloop-Session";

export class ConnectionLost extends Error {}

export class Refused extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.code = error.code ?? null;
  }

  get isOverlong() {
    return this.code === "context_length_exceeded";
  }

  // What a proxy or a server without an engine answers: worth asking /ready.
  get isUnavailable() {
    return this.status === 502 || this.status === 503 || this.status === 504;
  }
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", cache: "no-store", ...options });
  } catch (error) {
    if (options?.signal?.aborted) throw error;
    throw new ConnectionLost(path);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let error = null;
  try {
    error = (await response.json()).error;
  } catch {
    // Not JSON: a proxy's page. The status line has to do.
  }
  if (typeof error?.message !== "string") {
    error = { message: `${response.status} ${response.statusText}`.trim() };
  }
  return new Refused(response.status, error);
}

function posting(body, { consent, session, signal }) {
  const headers = { "Content-Type": "application/json" };
  headers[CONSENT_HEADER] = consent ? "full" : "no"; // whatever the server keeps of others
  if (session) headers[SESSION_HEADER] = session;
  return { method: "POST", headers, body: JSON.stringify(body), signal };
}

export async function getInfo() {
  const response = await request("info");
  try {
    return await response.json();
  } catch {
    throw new ConnectionLost("info");
  }
}

export async function isReady() {
  try {
    await request("ready", { signal: AbortSignal.timeout(4000) });
    return true;
  } catch {
    return false;
  }
}

export async function sendFeedback(feedback, { consent }) {
  await request("v1/feedback", posting(feedback, { consent, signal: AbortSignal.timeout(15_000) }));
}

// One answer as it comes: yields the stream's chunks; returns at [DONE], throws if it never comes.
export async function* streamChat(body, { consent, session, signal }) {
  const stream = { stream: true, stream_options: { include_usage: true } };
  const response = await request(
    "v1/chat/completions",
    posting({ ...body, ...stream }, { consent, session, signal }),
  );
  for await (const data of events(response.body, signal)) {
    if (data === "[DONE]") return;
    const chunk = parse(data);
    if (chunk.error) throw new Refused(500, chunk.error);
    yield chunk;
  }
  throw new ConnectionLost("the stream ended without [DONE]");
}

function parse(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ConnectionLost("the stream carried something that is not JSON");
  }
}

async function* events(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { done, value } = await readInTime(reader, signal);
      if (done) return;
      buffer += value.replaceAll("\r", "");
      let end;
      while ((end = buffer.indexOf("\n\n")) >= 0) {
        const data = dataOf(buffer.slice(0, end));
        buffer = buffer.slice(end + 2);
        if (data) yield data;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function readInTime(reader, signal) {
  let timer;
  const silence = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new ConnectionLost("silence")), SILENCE_MS);
  });
  try {
    return await Promise.race([reader.read(), silence]);
  } catch (error) {
    if (signal?.aborted || error instanceof ConnectionLost) throw error;
    throw new ConnectionLost("the stream broke");
  } finally {
    clearTimeout(timer);
  }
}

// The data lines of one event; comment lines (the server's pings) carry none.
function dataOf(event) {
  return event
    .split("\n")
    .filter((line) => line.startsWith("data:"))
    .map((line) => line.slice(5).trimStart())
    .join("\n");
}
