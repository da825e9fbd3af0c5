// Numbers, times and shares as a reader of either language expects them.
// Takes: the page's words. Gives: functions from a value to text; an en dash stands for an unknown one.

const UNKNOWN = "–";

export function makeFormat(words) {
  const known = (value) => value !== null && value !== undefined && Number.isFinite(value);
  const number = (value, digits) => {
    if (!known(value)) return UNKNOWN;
    const size = Math.abs(value);
    const places = digits ?? (size >= 100 || Number.isInteger(value) ? 0 : size >= 10 ? 1 : 2);
    return value.toLocaleString(words.tag, { maximumFractionDigits: places });
  };
  return {
    number,
    share: (value) => (known(value) ? `${number(100 * value, value < 0.1 ? 1 : 0)} %` : UNKNOWN),
    duration(seconds) {
      if (!known(seconds)) return UNKNOWN;
      if (seconds >= 1) return words.t("seconds", { value: number(seconds, 2) });
      return words.t("milliseconds", { value: number(1000 * seconds, seconds < 0.01 ? 1 : 0) });
    },
    probability(p) {
      if (!known(p)) return UNKNOWN;
      return p < 0.001 ? p.toExponential(0) : number(p, 3);
    },
    clock(seconds, span) {
      const far = span > 86_400 ? { month: "short", day: "numeric" } : {};
      const time = span > 3 * 86_400 ? {} : { hour: "2-digit", minute: "2-digit" };
      return new Date(1000 * seconds).toLocaleString(words.tag, { ...far, ...time, hour12: false });
    },
    moment(seconds) {
      const parts = { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit" };
      return new Date(1000 * seconds).toLocaleString(words.tag, { ...parts, hour12: false });
    },
    language(code) {
      try {
        return new Intl.DisplayNames([words.tag], { type: "language" }).of(code);
      } catch {
        return code;
      }
    },
  };
}
