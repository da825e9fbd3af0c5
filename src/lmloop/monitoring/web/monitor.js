// The monitor: asks for the summary every few seconds and shows it.
// Takes: /monitor/data.json. Gives: tiles, plots, drift, tables, events. All text goes in as text.

import { drawDrift, drawSignals, shorten } from "./drift.js";
import { makeFormat } from "./format.js";
import { plot } from "./plot.js";
import { Words } from "./words.js";

const SPANS = [
  [15, "15 min"],
  [60, "1 h"],
  [360, "6 h"],
  [1440, "24 h"],
  [10_080, "7 d"],
];
const PAUSE_MS = 5000;
const BAD_SHARE = 0.01;
const page = (id) => document.getElementById(id);

const state = {
  words: new Words(document.documentElement.lang.startsWith("zh") ? "zh" : "en"),
  minutes: 60,
  data: null,
  timer: 0,
};

function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

function remember(name, value) {
  try {
    localStorage.setItem(`lmloop.${name}`, JSON.stringify(value));
  } catch {
    // A browser without storage forgets the choice.
  }
}

function panel(title, value, body, changed = false) {
  const head = make("div", "panel-head", make("span", "title", title), make("span", "value", value));
  return make("div", changed ? "panel changed" : "panel", head, body);
}

function drawTiles(data, { t, format }) {
  const { traffic } = data;
  const failed = (traffic.endings.error ?? 0) + (traffic.endings.cancelled ?? 0);
  const rated = traffic.up + traffic.down;
  const last = data.windows.at(-1);
  const drift = !last ? "none" : last.reference === "none" ? "learning" : last.alarmed ? "alarm" : last.changed.length ? "changed" : "quiet";
  const time = (name) => [t(name), format.duration(traffic[name]?.median), t("p95", { value: format.duration(traffic[name]?.p95) })];
  const rate = format.number((60 * traffic.requests) / data.seconds);
  const tokens = format.number(traffic.prompt_tokens + traffic.completion_tokens);
  const share = format.share(rated ? traffic.up / rated : null);
  const tiles = [
    [t("requests"), format.number(traffic.requests), t("requests_note", { rate, tokens })],
    time("first_token"),
    time("between_tokens"),
    time("total"),
    [t("ratings"), rated ? share : "–", rated ? t("ratings_note", { count: format.number(rated), corrections: traffic.corrections }) : t("no_ratings")],
    [t("failed"), format.number(failed), t("failed_note", { count: format.number(traffic.requests) }), failed > BAD_SHARE * traffic.requests ? "bad" : ""],
    [t("drift"), t(`drift_${drift}`), t("next_window", { waiting: Math.min(data.waiting, data.window_requests), size: data.window_requests }), drift === "alarm" ? "bad" : drift === "quiet" ? "good" : ""],
  ];
  page("tiles").replaceChildren(
    ...tiles.map(([label, value, note, style]) =>
      make("div", `tile ${style ?? ""}`, make("p", "label", label), make("p", "value", value), make("p", "note", note)),
    ),
  );
}

function drawTraffic(data, context) {
  const { t, format } = context;
  const { buckets, bucket_seconds: width } = data.traffic;
  const times = [buckets[0].start, buckets.at(-1).start + width];
  const marks = data.alarms.map((alarm) => alarm.data.last);
  const common = { times, marks, width, time: (at) => format.clock(at, data.seconds) };
  const at = (time) => buckets[Math.min(buckets.length - 1, Math.floor((time - times[0]) / width))];
  const arms = [["live", "first"], ["canary", "second"], ["shadow", "third"]].filter(([arm]) => buckets.some((each) => each.arms[arm]));
  const bars = buckets.map((each) => ({
    time: each.start,
    parts: [...arms.map(([arm, style]) => ({ value: (60 * (each.arms[arm] ?? 0)) / width, style })), { value: (-60 * each.failed) / width, style: "danger" }],
  }));
  const failures = buckets.some((each) => each.failed) ? [{ text: t("error"), style: "danger" }] : [];
  const shapes = [
    [t("traffic"), {
      bars, fromZero: true, value: (value) => format.number(Math.abs(value)),
      legend: [...arms.map(([arm, style]) => ({ text: t(arm), style })), ...failures],
      tell: (time) => `${format.moment(at(time).start)} · ${arms.map(([arm]) => `${t(arm)} ${at(time).arms[arm] ?? 0}`).join(" · ")} · ${t("error")} ${at(time).failed}`,
    }],
    ...["first_token", "total"].map((name) => [t(name), percentiles(name, buckets, at, width, context)]),
    [t("ratings"), {
      bars: buckets.map((each) => ({ time: each.start, parts: [{ value: each.up, style: "first" }, { value: -each.down, style: "second" }] })),
      fromZero: true, value: (value) => format.number(Math.abs(value)),
      legend: [{ text: t("up"), style: "first" }, { text: t("down"), style: "second" }],
      tell: (time) => `${format.moment(at(time).start)} · ${t("up")} ${at(time).up} · ${t("down")} ${at(time).down}`,
    }],
  ];
  page("traffic").replaceChildren(
    ...shapes.map(([title, shape]) => panel(title, "", plot({ ...common, ...shape, label: title }, 170))),
  );
}

function percentiles(name, buckets, at, width, { t, format }) {
  const kinds = [["p99", "third", "percentile_99"], ["p95", "second", "percentile_95"], ["median", "first", "median"]];
  return {
    lines: kinds.map(([kind, style]) => ({ style, points: buckets.map((each) => [each.start + width / 2, each[name]?.[kind] ?? null]) })),
    fromZero: true,
    value: format.duration,
    legend: kinds.map(([, style, key]) => ({ text: t(key), style })).reverse(),
    tell: (time) => `${format.moment(at(time).start)} · ${[...kinds].reverse().map(([kind, , key]) => `${t(key)} ${format.duration(at(time)[name]?.[kind])}`).join(" · ")}`,
  };
}

function fill(id, titles, rows, { t }) {
  const cell = (tag, [text, style]) => make(tag, style ?? "", text);
  const head = make("tr", "", ...titles.map((title) => cell("th", title)));
  const body = rows.map((row) => make("tr", "", ...row.map((each) => cell("td", each))));
  page(id).replaceChildren(...(rows.length ? [head, ...body] : [make("tr", "", make("td", "nothing", t("nothing")))]));
}

function drawTables(data, context) {
  const { t, format } = context;
  const right = (text, bad = false) => [text, bad ? "number bad" : "number"];
  fill(
    "arms",
    [[t("arm")], [t("weights")], right(t("requests")), right(t("failed")), right(t("first_token")), right(t("total")), right(t("up")), right(t("down"))],
    data.traffic.arms.map((arm) => [
      [t(arm.arm)], [arm.weights, "mono"], right(format.number(arm.requests)), right(format.number(arm.failed), arm.failed > 0),
      right(format.duration(arm.first_token?.median)), right(format.duration(arm.total?.median)), right(format.number(arm.up)), right(format.number(arm.down)),
    ]),
    context,
  );
  fill(
    "servers",
    [[t("address")], [t("weights")], right(t("generation")), [t("candidate")], right(t("heard"))],
    data.servers.map((server) => [
      [server.address], [server.live ?? "–", "mono"], right(String(server.generation)),
      [[server.candidate, server.candidate_state, server.note].filter(Boolean).join(" · ")], right(t("ago", { count: format.number(server.silent_seconds, 0) })),
    ]),
    context,
  );
}

function drawEvents(data, { t, format }) {
  const told = (event) =>
    event.kind === "alarm" ? event.data.signals.map((name) => shorten(t(name))).join(", ")
      : Object.entries(event.data).filter(([, value]) => value !== null && typeof value !== "object").map(([name, value]) => `${name}: ${value}`).join(" · ");
  const rows = data.events.map((event) => {
    const text = make("span", "told", told(event));
    text.title = text.textContent;
    return make("li", "", make("time", "", format.moment(event.created)), make("span", `kind ${event.kind === "alarm" ? "alarm" : ""}`, event.kind), text);
  });
  page("events").replaceChildren(...(rows.length ? rows : [make("li", "nothing", t("nothing"))]));
}

function show() {
  const { data, words } = state;
  words.translate(document);
  if (!data) return;
  const context = { t: words.t.bind(words), format: makeFormat(words), make, panel };
  document.title = `${data.name} · lmloop`;
  page("model-name").textContent = data.name;
  page("model-weights").textContent = data.servers[0]?.live ?? "";
  page("notice").hidden = !data.empty;
  page("notice").textContent = data.empty ? words.t("empty") : "";
  drawTiles(data, context);
  drawTraffic(data, context);
  drawDrift(data, context);
  drawSignals(data, context);
  drawTables(data, context);
  drawEvents(data, context);
}

async function ask() {
  clearTimeout(state.timer);
  const { minutes } = state;
  try {
    const response = await fetch(`/monitor/data.json?minutes=${minutes}`);
    if (!response.ok) throw new Error(String(response.status));
    const data = await response.json();
    if (minutes !== state.minutes) return;
    state.data = data;
    // While a reader points at a plot, it stays.
    if (!document.querySelector(".plot:hover")) show();
  } catch {
    const time = state.data ? makeFormat(state.words).moment(state.data.created) : "–";
    page("notice").hidden = false;
    page("notice").textContent = state.words.t("unreachable", { time });
  }
  if (!document.hidden) state.timer = setTimeout(ask, PAUSE_MS);
}

page("spans").append(
  ...SPANS.map(([minutes, label]) => {
    const button = make("button", "", label);
    button.type = "button";
    button.setAttribute("aria-pressed", String(minutes === state.minutes));
    button.addEventListener("click", () => {
      state.minutes = minutes;
      for (const each of page("spans").children) each.setAttribute("aria-pressed", String(each === button));
      ask();
    });
    return button;
  }),
);
page("language").addEventListener("click", () => {
  state.words = new Words(state.words.other);
  remember("language", state.words.code);
  show();
});
page("theme").addEventListener("click", () => {
  const root = document.documentElement;
  root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  remember("theme", root.dataset.theme);
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) ask();
});
show();
ask();
