// Every sentence of the page, in English and Chinese.
// Takes: a language ("en" or "zh"). Gives: t(key, values), and translate(root) for marked elements.

const ENGLISH = {
  other_language: "中文",
  switch_language: "Switch to Chinese (切换到中文)",
  switch_theme: "Switch between light and dark",
  new_chat: "New chat",
  settings: "Settings",
  close: "Close",
  controls: "Chat controls",
  chat: "Chat",
  welcome: "What shall we talk about?",
  welcome_note: "This model runs on this server and nowhere else.\nIt can be wrong: check what matters.",
  prompt_label: "Your message",
  placeholder: "Write a message",
  send: "Send (Enter)",
  stop: "Stop (Esc)",
  jump: "Jump to latest",
  consent: "Share the text of this chat to improve the model",
  consent_off: "Off: the server keeps counts, not words.",
  consent_on: "On: the server keeps your words and the answers.",
  reconnecting: "Reconnecting… What you type is kept.",
  reconnected: "Connected again.",
  temperature: "Temperature",
  temperature_note: "Low is predictable, high is surprising.",
  top_p: "Top-p",
  top_p_note: "Only the likeliest tokens that add up to this share.",
  max_tokens: "Longest answer (tokens)",
  seed: "Seed",
  seed_placeholder: "random",
  seed_note: "Same seed and same chat: same answer.",
  system: "Instruction to the model",
  system_placeholder: "None. For example: Answer in one short sentence.",
  appearance: "Appearance",
  appearance_system: "System",
  appearance_light: "Light",
  appearance_dark: "Dark",
  model: "Model",
  weights: "Weights",
  context: "Context",
  tokens: "{count} tokens",
  reset: "Reset to the model's defaults",
  you: "You",
  answer: "Answer",
  generating: "The model is answering.",
  copy: "Copy",
  copied: "Copied",
  copy_failed: "The browser did not allow copying.",
  good: "Good answer",
  bad: "Bad answer",
  suggest: "Suggest a better answer",
  regenerate: "Answer again",
  suggestion: "Your suggestion",
  suggestion_label: "What would have been a better answer?",
  suggestion_note: "Your suggestion is sent to the server when you save it.",
  save: "Save",
  cancel: "Cancel",
  edit: "Edit",
  retry: "Try again",
  saving: "Saving…",
  saved: "Saved",
  not_saved: "Not saved: {reason}",
  stopped: "Stopped.",
  cut: "Cut at the longest answer allowed.",
  cut_context: "Cut: the model's context is full.",
  empty: "The model answered with nothing.",
  broken: "The connection was lost in mid-answer.",
  failed: "Not answered: the server could not be reached.",
  failed_with: "Not answered: {reason}",
  broken_with: "The answer broke off: {reason}",
  too_long: "This message is too long for the model. Shorten it and send it again.",
  unreachable: "the server could not be reached.",
  unseen_above: "The model no longer sees the messages above this line",
  timing: "First token {first} ms · {rate} tokens/s",
  timing_first: "First token {first} ms",
  cleared: "Chat cleared.",
  undo: "Undo",
  code: "Code",
};

const CHINESE = {
  other_language: "EN",
  switch_language: "切换到英文（Switch to English）",
  switch_theme: "切换明暗主题",
  new_chat: "新对话",
  settings: "设置",
  close: "关闭",
  controls: "对话控制",
  chat: "对话",
  welcome: "聊点什么？",
  welcome_note: "模型只在这台服务器上运行。\n它可能出错，重要的内容请自行核实。",
  prompt_label: "你的消息",
  placeholder: "输入消息",
  send: "发送（Enter）",
  stop: "停止（Esc）",
  jump: "跳到最新",
  consent: "共享本次对话的文字，用于改进模型",
  consent_off: "已关闭：服务器只计数，不保留文字。",
  consent_on: "已开启：服务器保留你的文字和回答。",
  reconnecting: "正在重新连接，已输入的内容会保留。",
  reconnected: "已重新连接。",
  temperature: "温度",
  temperature_note: "低则稳妥，高则多变。",
  top_p: "Top-p",
  top_p_note: "只从累计概率达到此比例的词元中选取。",
  max_tokens: "回答长度上限（词元）",
  seed: "随机种子",
  seed_placeholder: "随机",
  seed_note: "种子与对话都相同，回答也相同。",
  system: "给模型的指示",
  system_placeholder: "无。例如：请用一句话回答。",
  appearance: "外观",
  appearance_system: "跟随系统",
  appearance_light: "浅色",
  appearance_dark: "深色",
  model: "模型",
  weights: "权重",
  context: "上下文",
  tokens: "{count} 词元",
  reset: "恢复模型的默认值",
  you: "你",
  answer: "回答",
  generating: "模型正在回答。",
  copy: "复制",
  copied: "已复制",
  copy_failed: "浏览器不允许复制。",
  good: "回答得好",
  bad: "回答得不好",
  suggest: "建议更好的回答",
  regenerate: "重新回答",
  suggestion: "你的建议",
  suggestion_label: "怎样回答会更好？",
  suggestion_note: "保存后，你的建议会发送到服务器。",
  save: "保存",
  cancel: "取消",
  edit: "修改",
  retry: "重试",
  saving: "正在保存",
  saved: "已保存",
  not_saved: "未保存：{reason}",
  stopped: "已停止。",
  cut: "已达到回答长度上限。",
  cut_context: "已截断：模型的上下文已满。",
  empty: "模型没有给出内容。",
  broken: "回答途中连接中断。",
  failed: "未得到回答：无法连接服务器。",
  failed_with: "未得到回答：{reason}",
  broken_with: "回答中断：{reason}",
  too_long: "这条消息对模型来说太长。请缩短后重新发送。",
  unreachable: "无法连接服务器。",
  unseen_above: "模型已看不到此线以上的消息",
  timing: "首词元 {first} 毫秒 · {rate} 词元/秒",
  timing_first: "首词元 {first} 毫秒",
  cleared: "对话已清空。",
  undo: "撤销",
  code: "代码",
};

// The openers go to the model as written in `text`, in both languages; `note` is the small line below.
export const OPENERS = [
  { text: "Hi! How was your day?", note: { en: "Say hello", zh: "你好！今天过得怎么样？" } },
  { text: "What do you like to do on weekends?", note: { en: "Free time", zh: "周末你喜欢做什么？" } },
  { text: "Have you seen any good movies lately?", note: { en: "Movies", zh: "最近看过什么好电影吗？" } },
  { text: "What is your favorite food?", note: { en: "Food", zh: "你最喜欢吃什么？" } },
];

const TABLES = { en: ENGLISH, zh: CHINESE };
const TAGS = { en: "en", zh: "zh-CN" };

export class Language {
  constructor(code) {
    this.code = code in TABLES ? code : "en";
  }

  get other() {
    return this.code === "en" ? "zh" : "en";
  }

  t(key, values = {}) {
    const sentence = TABLES[this.code][key];
    if (sentence === undefined) throw new Error(`no sentence is called ${key}`);
    return sentence.replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
  }

  translate(root) {
    document.documentElement.lang = TAGS[this.code];
    for (const element of root.querySelectorAll("[data-text]")) {
      element.textContent = this.t(element.dataset.text);
    }
    for (const element of root.querySelectorAll("[data-label]")) {
      const label = this.t(element.dataset.label);
      element.setAttribute("aria-label", label);
      if (element.matches("button")) element.title = label;
    }
    for (const element of root.querySelectorAll("[data-placeholder]")) {
      element.placeholder = this.t(element.dataset.placeholder);
    }
  }
}

export function preferredLanguage(remembered) {
  const wish = remembered ?? navigator.languages?.[0] ?? navigator.language ?? "en";
  return String(wish).toLowerCase().startsWith("zh") ? "zh" : "en";
}
