// Drift on the page: a cell a window, what each alarm was about, and every signal over the windows.
// Takes: the summary. Gives: the sections #strip, #alarms and #signals.

import { plot } from "./plot.js";

const SHARES = new Set(["refusal", "length_stop", "thumbs_down"]);
const DISTANCES = new Set(["language", "answer_language", "embedding"]);
const SHOWN_ALARMS = 3;
const page = (id) => document.getElementById(id);

export function drawDrift(data, { t, format, make }) {
  const { reference } = data;
  const told = { weights: reference?.weights, size: reference?.size };
  page("drift-note").textContent = reference ? t(`reference_${reference.kind}`, told) : "";
  const cells = data.windows.map((window) => {
    const style = window.raises_alarm ? "alarm" : window.changed.length ? "changed" : window.reference === "none" ? "none" : "calm";
    const cell = make("i", style);
    const names = window.changed.map((name) => shorten(t(name))).join(", ") || t("quiet");
    cell.title = t("window_title", { time: format.moment(window.last), requests: window.requests, told: names });
    return cell;
  });
  const next = make("i", "next");
  next.title = t("next_window", { waiting: Math.min(data.waiting, data.window_requests), size: data.window_requests });
  page("strip").replaceChildren(...cells, next);
  const alarms = [...data.alarms].reverse().slice(0, SHOWN_ALARMS);
  page("alarms").replaceChildren(...alarms.map((alarm) => describeAlarm(alarm, { t, format, make })));
}

// A signal's name without its unit.
export function shorten(text) {
  return text.replace(/\s*[(（].*$/, "");
}

function describeAlarm(alarm, { t, format, make }) {
  const signals = alarm.data.signals.map((name) => shorten(t(name))).join(", ");
  const cells = (tag, texts) => make("tr", "", ...texts.map((text, place) => make(tag, place ? "number" : "", text)));
  const rows = alarm.data.findings.map((finding) =>
    cells("td", [
      shorten(t(finding.signal)),
      describe(finding.signal, finding.before, format),
      describe(finding.signal, finding.now, format),
      format.number(finding.effect, 2),
      format.probability(finding.corrected),
    ]),
  );
  const head = cells("th", [t("changed_signal"), t("before"), t("then"), t("effect"), t("p_value")]);
  return make("li", "", make("strong", "", t("alarm_at", { signals })), ` ${format.moment(alarm.created)}`, make("table", "", head, ...rows));
}

// A median, a share, or the largest shares of several words.
function describe(signal, value, format) {
  if (value !== null && typeof value === "object") {
    const words = Object.entries(value).sort((one, other) => other[1] - one[1]).filter(([, share]) => share >= 0.005);
    return words.slice(0, 3).map(([code, share]) => `${format.language(code)} ${format.share(share)}`).join(", ");
  }
  return SHARES.has(signal) ? format.share(value) : format.number(value);
}

export function drawSignals(data, context) {
  const panels = data.signals
    .filter((signal) => signal.points.length || signal.now !== null)
    .map((signal) => drawSignal(signal, data, context));
  page("signals").replaceChildren(...panels, drawLanguages(data, context));
}

function drawSignal(signal, data, { t, format, panel }) {
  const far = DISTANCES.has(signal.name);
  const value = (each) => (SHARES.has(signal.name) ? format.share(each) : format.number(each));
  const valueOf = (point) => (far ? point.effect : point.now);
  const points = signal.points.map((point) => [point.window, valueOf(point)]);
  const first = points.length ? points[0][0] : data.created - data.seconds;
  const last = points.length > 1 ? points.at(-1)[0] : data.created;
  const shown = points.length ? points.at(-1)[1] : signal.now;
  const beside = signal.reference === null || far ? value(shown) : `${value(signal.now)} (${value(signal.reference)})`;
  const shape = {
    times: [first, last],
    lines: [{ points, style: "first", dots: signal.points }],
    band: far ? [null, null, null] : [signal.low, signal.reference, signal.high],
    fromZero: SHARES.has(signal.name) || (far && signal.name !== "embedding"),
    value,
    time: (at) => format.clock(at, last - first),
    label: t(signal.name),
    tell(at) {
      const near = signal.points.reduce((best, each) => (Math.abs(each.window - at) < Math.abs(best.window - at) ? each : best), signal.points[0]);
      return near ? `${format.moment(near.window)} · ${value(valueOf(near))} · p ${format.probability(near.p)}` : "";
    },
  };
  return panel(t(signal.name), beside, plot(shape, 120), Boolean(signal.points.at(-1)?.changed));
}

function drawLanguages(data, { t, format, make, panel }) {
  const codes = [...new Set([...Object.keys(data.languages), ...Object.keys(data.reference_languages)])];
  const shares = codes.map((code) => [code, data.languages[code] ?? 0, data.reference_languages[code] ?? null]);
  shares.sort((one, other) => other[1] - one[1]);
  const rows = shares.filter(([, now, before]) => now >= 0.005 || before >= 0.005).slice(0, 6).map(([code, now, before]) =>
    make("tr", "", make("td", "", format.language(code)), make("td", "number", format.share(now)), make("td", "number", before === null ? "" : `(${format.share(before)})`)),
  );
  return panel(t("languages"), "", make("table", "", ...(rows.length ? rows : [make("tr", "", make("td", "nothing", t("nothing")))])));
}
