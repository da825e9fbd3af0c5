// Every sentence of the monitor, in English and Chinese.
// Takes: a language ("en" or "zh"). Gives: t(key, values), and translate(root) for marked elements.

const ENGLISH = {
  other_language: "中文",
  switch_language: "Switch to Chinese (切换到中文)",
  switch_theme: "Switch between light and dark",
  controls: "Controls",
  span: "Span of time",
  now: "Now",
  traffic: "Traffic",
  requests: "Requests",
  requests_note: "{rate} a minute · {tokens} tokens",
  first_token: "First token",
  between_tokens: "Between tokens",
  total: "Whole answer",
  p95: "95 % within {value}",
  ratings: "Ratings",
  ratings_note: "up, of {count} · {corrections} corrections",
  no_ratings: "none yet",
  failed: "Failed",
  failed_note: "of {count} requests",
  drift: "Drift",
  drift_none: "No windows yet",
  drift_quiet: "Quiet",
  drift_changed: "Changed",
  drift_alarm: "Alarm",
  drift_learning: "Learning",
  next_window: "{waiting} of {size} requests for the next window",
  reference_live: "compared with the first {size} live requests of {weights}",
  reference_text: "compared with training text until enough live requests have come",
  reference_none: "nothing to compare with yet",
  alarm_at: "Alarm: {signals}",
  changed_signal: "Signal",
  before: "Reference",
  then: "Window",
  effect: "Effect",
  p_value: "p",
  window_title: "{time} · {requests} requests · {told}",
  quiet: "no change",
  signals: "Signals",
  signals_note: "by window; the band holds the middle half of the reference, the dashed line its median",
  arms: "Versions",
  servers: "Servers",
  events: "Events",
  arm: "Role",
  weights: "Weights",
  address: "Address",
  generation: "Generation",
  candidate: "Candidate",
  heard: "Heard",
  ago: "{count} s ago",
  up: "Up",
  down: "Down",
  live: "live",
  canary: "canary",
  shadow: "shadow",
  error: "failed",
  median: "median",
  percentile_95: "95th percentile",
  percentile_99: "99th percentile",
  nothing: "Nothing yet.",
  empty: "Nothing has been served under this name yet. Requests will show here seconds after they are answered.",
  unreachable: "The server cannot be reached; what is shown is of {time}.",
  seconds: "{value} s",
  milliseconds: "{value} ms",
  prompt_characters: "Prompt length (characters)",
  answer_characters: "Answer length (characters)",
  prompt_nats: "Surprise of prompts (nats a token)",
  log_probability: "Certainty of answers (log-probability)",
  entropy: "Entropy of answers (nats)",
  repetition: "Repetition",
  refusal: "Refusals",
  length_stop: "Answers cut at their limit",
  thumbs_down: "Rated down",
  language: "Language (distance)",
  answer_language: "Language of answers (distance)",
  embedding: "Embeddings (how well a classifier tells them apart)",
  languages: "Languages",
};

const CHINESE = {
  other_language: "English",
  switch_language: "切换到英文 (Switch to English)",
  switch_theme: "切换浅色与深色",
  controls: "控制",
  span: "时间范围",
  now: "现在",
  traffic: "流量",
  requests: "请求",
  requests_note: "每分钟 {rate} 个 · {tokens} 词元",
  first_token: "首词元",
  between_tokens: "词元间隔",
  total: "完整回答",
  p95: "95% 在 {value} 以内",
  ratings: "评价",
  ratings_note: "好评，共 {count} 个 · {corrections} 个更正",
  no_ratings: "暂无",
  failed: "失败",
  failed_note: "共 {count} 个请求",
  drift: "漂移",
  drift_none: "尚无窗口",
  drift_quiet: "平稳",
  drift_changed: "有变化",
  drift_alarm: "警报",
  drift_learning: "学习中",
  next_window: "下一窗口已有 {waiting} / {size} 个请求",
  reference_live: "与 {weights} 的前 {size} 个线上请求比较",
  reference_text: "在线上请求足够之前，与训练文本比较",
  reference_none: "尚无可比较的内容",
  alarm_at: "警报：{signals}",
  changed_signal: "信号",
  before: "参照",
  then: "窗口",
  effect: "幅度",
  p_value: "p",
  window_title: "{time} · {requests} 个请求 · {told}",
  quiet: "无变化",
  signals: "信号",
  signals_note: "每窗口一点；色带为参照的中间一半，虚线为其中位数",
  arms: "版本",
  servers: "服务器",
  events: "事件",
  arm: "角色",
  weights: "权重",
  address: "地址",
  generation: "代",
  candidate: "候选",
  heard: "最近消息",
  ago: "{count} 秒前",
  up: "好评",
  down: "差评",
  live: "线上",
  canary: "金丝雀",
  shadow: "影子",
  error: "失败",
  median: "中位数",
  percentile_95: "第 95 百分位",
  percentile_99: "第 99 百分位",
  nothing: "暂无。",
  empty: "此名称下尚未服务过请求。请求得到回答几秒后会显示在这里。",
  unreachable: "无法连接服务器；所示为 {time} 的内容。",
  seconds: "{value} 秒",
  milliseconds: "{value} 毫秒",
  prompt_characters: "提示长度（字符）",
  answer_characters: "回答长度（字符）",
  prompt_nats: "提示的意外程度（奈特/词元）",
  log_probability: "回答的把握（对数概率）",
  entropy: "回答的熵（奈特）",
  repetition: "重复",
  refusal: "拒答",
  length_stop: "达到长度上限的回答",
  thumbs_down: "差评比例",
  language: "语言（距离）",
  answer_language: "回答语言（距离）",
  embedding: "嵌入（分类器区分程度）",
  languages: "语言",
};

const TABLES = { en: ENGLISH, zh: CHINESE };
const TAGS = { en: "en", zh: "zh-CN" };

export class Words {
  constructor(code) {
    this.code = code in TABLES ? code : "en";
  }

  get tag() {
    return TAGS[this.code];
  }

  get other() {
    return this.code === "en" ? "zh" : "en";
  }

  // A key that has no sentence is a name that the server made up: it stands for itself.
  t(key, values = {}) {
    const sentence = TABLES[this.code][key] ?? key;
    return sentence.replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
  }

  translate(root) {
    document.documentElement.lang = this.tag;
    for (const element of root.querySelectorAll("[data-text]")) {
      element.textContent = this.t(element.dataset.text);
    }
    for (const element of root.querySelectorAll("[data-label]")) {
      const label = this.t(element.dataset.label);
      element.setAttribute("aria-label", label);
      if (element.matches("button")) element.title = label;
    }
  }
}
