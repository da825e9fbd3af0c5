// The chat: what happens when a person types, sends, stops, rates, and when the server goes and comes.
// Takes: the page's elements and the server. Gives: the running page.

import * as api from "./api.js";
import { Composer } from "./composer.js";
import { Connection } from "./connection.js";
import { Language, preferredLanguage } from "./i18n.js";
import { Appearance, Consent, SettingsSheet } from "./settings.js";
import { answer, Chat, question, recall, remember, Settings, userId } from "./state.js";
import { fittingStart, TokenEstimate, turnsOf, withoutOldest } from "./trim.js";
import { ChatView } from "./view.js";

const SAVE_EVERY_MS = 500;

class Conversation {
  constructor() {
    this.language = new Language(preferredLanguage(recall("language")));
    this.settings = new Settings();
    this.chat = Chat.load({ settle: true });
    this.user = userId();
    this.estimate = new TokenEstimate(this.chat.tokensPerByte);
    this.info = null;
    this.running = null; // the AbortController of the answer under way
    this.view = new ChatView({ language: this.language, actions: this.actions() });
    this.sheet = new SettingsSheet(this.settings);
    this.appearance = new Appearance();
    this.consent = new Consent(this.language);
    this.connection = new Connection({
      isReady: api.isReady,
      onChange: (online) => this.onConnection(online),
    });
    this.composer = new Composer({
      onSend: (text) => this.send(text),
      onStop: () => this.stop(),
      mayStop: () => this.running !== null,
    });
  }

  actions() {
    return {
      send: (text) => this.send(text),
      regenerate: (message) => this.again(message),
      retry: (message) => this.again(message),
      edit: (message) => this.takeBack(message),
      saveFeedback: (message, feedback) => this.saveFeedback(message, feedback),
    };
  }

  async start() {
    this.translate();
    document.getElementById("new-chat").addEventListener("click", () => this.clear());
    document.getElementById("language").addEventListener("click", () => this.switchLanguage());
    window.addEventListener("pagehide", () => {
      if (this.running) this.chat.save(); // else it is saved, perhaps by another tab since
    });
    window.addEventListener("storage", (event) => this.onOtherTab(event));
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && this.connection.online) this.loadInfo();
    });
    await this.loadInfo();
  }

  async loadInfo() {
    try {
      this.info = await api.getInfo();
    } catch {
      this.connection.lost();
      return;
    }
    this.settings.takeInfo(this.info);
    this.view.showModel(this.info);
    if (!this.info.context_length) this.connection.lost(); // no engine yet: wait for one
  }

  // Sends what was typed; false when it has to wait, so that nothing is lost.
  send(text) {
    const content = text.trim();
    if (!content || this.running || !this.connection.online) return false;
    this.view.append(this.chat.add(question, content));
    this.view.follower.jump();
    this.answerLast();
    return true;
  }

  stop() {
    this.running?.abort();
  }

  // Answers the last question anew, after a stop, a failure or a wish for another answer.
  again(message) {
    if (this.running || !this.connection.online || message !== this.chat.last) return;
    if (message.role === "assistant") {
      this.view.remove(message);
      this.chat.removeLast();
    }
    const asked = this.chat.last;
    asked.status = "done";
    delete asked.error;
    this.view.update(asked);
    this.answerLast();
  }

  // Puts a message that was not answered back into the input.
  takeBack(message) {
    if (this.running || message !== this.chat.last) return;
    this.chat.removeLast();
    this.chat.save();
    this.view.render(this.chat);
    this.composer.put(message.content);
  }

  async answerLast() {
    const { chat } = this; // a new chat may take its place before the answer ends
    const message = chat.add(answer);
    this.running = new AbortController();
    chat.save();
    this.view.append(message);
    this.view.showBusy(true);
    this.view.announce(this.language.t("generating"));
    try {
      await this.streamTrimmed(chat, message);
      message.status = "done";
    } catch (error) {
      this.settle(chat, message, error);
    } finally {
      this.running = null;
      chat.tokensPerByte = this.estimate.tokensPerByte;
      if (chat === this.chat) chat.save();
      this.view.update(message);
      this.view.showBusy(false);
      this.view.announceResult(chat.last);
    }
  }

  // Sends as much of the chat as the model can hold; each refusal drops the oldest exchange.
  async streamTrimmed(chat, message) {
    if (!this.info) await this.loadInfo();
    const { settings, estimate } = this;
    const { contextLength } = settings;
    const system = settings.get("system").trim();
    const maxTokens = settings.get("max_tokens");
    const limits = { system, estimate, contextLength, maxTokens };
    chat.start = fittingStart(chat.messages, { start: chat.start, ...limits });
    for (;;) {
      this.view.showStart(chat);
      const turns = turnsOf(chat.messages, { start: chat.start, system });
      try {
        return await this.stream(message, turns, chat.session);
      } catch (error) {
        if (!error.isOverlong) throw error;
        estimate.raise(turns, contextLength);
        const next = withoutOldest(chat.messages, chat.start);
        if (next === null) throw error;
        chat.start = next;
      }
    }
  }

  async stream(message, turns, session) {
    const began = performance.now();
    const { signal } = this.running;
    const consent = this.consent.given;
    const body = { ...this.settings.request, messages: turns, user: this.user };
    if (this.info) body.model = this.info.model;
    let first = null;
    let last = began;
    let saved = began;
    let tokens = 0;
    let weights = this.info?.weights;
    for await (const chunk of api.streamChat(body, { consent, session, signal })) {
      message.responseId ??= chunk.id;
      weights = chunk.system_fingerprint ?? weights;
      if (chunk.usage) {
        this.estimate.learn(turns, chunk.usage.prompt_tokens);
        tokens = chunk.usage.completion_tokens;
      }
      const choice = chunk.choices?.[0];
      if (choice?.finish_reason) message.finish = choice.finish_reason;
      if (!choice?.delta?.content) continue;
      last = performance.now();
      first ??= last;
      message.content += choice.delta.content;
      this.view.updateSoon(message);
      if (last - saved > SAVE_EVERY_MS) {
        this.chat.save();
        saved = last;
      }
    }
    if (message.finish === "length" && tokens > 0 && tokens < body.max_tokens) message.finish = "context";
    if (first !== null) message.timing = timingOf({ began, first, last, tokens });
    if (weights !== this.info?.weights) this.loadInfo(); // another version has taken over
  }

  // What a failed, stopped or broken answer leaves behind.
  settle(chat, message, error) {
    const isStopped = this.running.signal.aborted;
    const isKnown = isStopped || error instanceof api.ConnectionLost || error instanceof api.Refused;
    const reason = error instanceof api.Refused ? error.message : undefined;
    if (!isStopped && (error instanceof api.ConnectionLost || error.isUnavailable)) {
      this.connection.lost();
    }
    if (isStopped) message.status = "stopped";
    else if (message.content) {
      message.status = "broken";
      message.error = reason;
    } else {
      this.view.remove(message);
      chat.removeLast();
      const asked = chat.last;
      asked.status = "failed";
      asked.error = error.isOverlong ? "too_long" : reason;
      this.view.update(asked);
    }
    if (error.code === "model_not_found") this.loadInfo(); // the server now has another one
    if (!isKnown) throw error; // a fault of the page itself: the console shows it
  }

  async saveFeedback(message, { rating, correction }) {
    const feedback = { response_id: message.responseId, rating };
    if (correction) feedback.correction = correction;
    try {
      await api.sendFeedback(feedback, { consent: this.consent.given });
    } catch (error) {
      if (error instanceof api.ConnectionLost) this.connection.lost();
      throw error;
    }
    message.rating = rating;
    if (correction) message.correction = correction;
    this.chat.save();
  }

  onConnection(online) {
    this.view.showConnection(online);
    if (online) this.loadInfo();
  }

  // Another tab changed the chat, and both share one: show what it left.
  onOtherTab({ key }) {
    if (key !== "lmloop.chat" || this.running) return;
    this.chat = Chat.load({ settle: false });
    this.view.render(this.chat);
  }

  clear() {
    this.stop();
    const before = this.chat;
    this.chat = new Chat({ tokensPerByte: this.estimate.tokensPerByte });
    this.chat.save();
    this.view.render(this.chat);
    this.composer.focus();
    if (before.messages.length === 0) return;
    const undo = () => {
      if (this.running || this.chat.messages.length > 0) return;
      this.chat = before;
      this.chat.save();
      this.view.render(this.chat);
    };
    this.view.toast(this.language.t("cleared"), { label: this.language.t("undo"), run: undo });
  }

  switchLanguage() {
    this.language.code = this.language.other;
    remember("language", this.language.code);
    this.translate();
  }

  translate() {
    this.language.translate(document);
    this.view.render(this.chat);
    if (this.info) this.view.showModel(this.info);
  }
}

function timingOf({ began, first, last, tokens }) {
  const seconds = (last - first) / 1000;
  const rate = tokens > 1 && seconds > 0 ? Math.round((tokens - 1) / seconds) : null;
  return { first: Math.round(first - began), rate };
}

new Conversation().start();
