// The page around the messages: the list, the trim line, the welcome, the model's name, short news.
// Takes: the chat, the language, actions. Gives: what is on the screen; nothing here talks to the server.

import { make } from "./dom.js";
import { OPENERS } from "./i18n.js";
import { MessageView } from "./message.js";
import { Follower } from "./scroll.js";

const TOAST_MS = 6000;
const SHOWN_VERSION_LENGTH = 12;

const byId = (id) => document.getElementById(id);

export class ChatView {
  constructor({ language, actions }) {
    this.language = language;
    this.actions = actions;
    this.views = new Map(); // message id -> MessageView
    this.log = byId("log");
    this.follower = new Follower(byId("scroller"), byId("jump"), () => this.views.size > 0);
    this.line = make("div", { class: "trim-line", role: "separator" }, make("span"));
    this.growing = null;
  }

  // Draws everything anew: on loading, after a change of language, after an exchange was taken back.
  render(chat) {
    const drafts = new Map();
    for (const [id, view] of this.views) if (view.area) drafts.set(id, view.area.value);
    this.views.clear();
    this.log.replaceChildren();
    for (const message of chat.messages) this.append(message);
    for (const [id, draft] of drafts) this.views.get(id)?.openEditor(draft);
    this.showStart(chat);
    this.showWelcome(chat);
    this.follower.follow();
  }

  append(message) {
    const view = new MessageView(message, { language: this.language, actions: this.actions });
    this.views.set(message.id, view);
    this.log.append(view.node);
    byId("welcome").hidden = true;
    this.follower.follow();
  }

  remove(message) {
    this.views.get(message.id)?.node.remove();
    this.views.delete(message.id);
  }

  update(message) {
    this.views.get(message.id)?.update();
    this.follower.follow();
  }

  // For text that arrives faster than the screen is drawn.
  updateSoon(message) {
    this.growing ??= requestAnimationFrame(() => {
      this.growing = null;
      this.update(message);
    });
  }

  // The line above which the model sees nothing any more.
  showStart({ messages, start }) {
    this.line.remove();
    messages.forEach((message, index) => {
      this.views.get(message.id)?.node.toggleAttribute("data-unseen", index < start);
    });
    const first = messages[start];
    if (start === 0 || !first) return;
    this.line.firstChild.textContent = this.language.t("unseen_above");
    this.views.get(first.id)?.node.before(this.line);
    this.follower.follow();
  }

  showWelcome({ messages }) {
    byId("welcome").hidden = messages.length > 0;
    const buttons = OPENERS.map(({ text, note }) => {
      const button = make("button", { type: "button", class: "opener" });
      button.append(make("span", { lang: "en" }, text));
      button.append(make("span", { class: "note" }, note[this.language.code]));
      button.addEventListener("click", () => this.actions.send(text));
      return make("li", {}, button);
    });
    byId("openers").replaceChildren(...buttons);
  }

  showModel({ model, weights, context_length }) {
    const version = String(weights ?? "").replace(/^sha256:/, "");
    byId("model").hidden = false;
    byId("model").title = `${model} ${version}`;
    byId("model-name").textContent = model;
    byId("model-weights").textContent = version.slice(0, SHOWN_VERSION_LENGTH);
    byId("fact-model").textContent = model;
    byId("fact-weights").textContent = version || "–";
    byId("fact-context").textContent = context_length
      ? this.language.t("tokens", { count: context_length })
      : "–";
    document.title = `${model} · lmloop`;
  }

  showBusy(isBusy) {
    const button = byId("send");
    document.documentElement.toggleAttribute("data-busy", isBusy);
    button.dataset.label = isBusy ? "stop" : "send";
    button.title = this.language.t(button.dataset.label);
    button.setAttribute("aria-label", button.title);
  }

  showConnection(isOnline) {
    byId("connection").hidden = isOnline;
    document.documentElement.toggleAttribute("data-offline", !isOnline);
    if (isOnline) this.toast(this.language.t("reconnected"));
    this.follower.follow();
  }

  toast(words, action = null) {
    const button = byId("toast-action");
    byId("toast-text").textContent = words;
    byId("toast").hidden = false;
    button.hidden = !action;
    button.textContent = action?.label ?? "";
    const hide = () => (byId("toast").hidden = true);
    button.onclick = () => {
      hide();
      action?.run();
    };
    clearTimeout(this.toastTimer);
    this.toastTimer = setTimeout(hide, TOAST_MS);
  }

  // For people who listen: one sentence at a time, not every token.
  announce(words) {
    byId("announcer").textContent = words;
  }

  announceResult(message) {
    const view = this.views.get(message?.id);
    if (view) this.announce(`${message.role === "user" ? "" : message.content} ${view.noticeWords()}`.trim());
  }
}
