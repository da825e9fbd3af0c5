// One message on the page: its text, what went wrong with it, its buttons, its rating and suggestion.
// Takes: a message, the language, actions to call. Gives: a node, and update() after the message changed.

import { copyText, fitHeight, icon, iconButton, make, textButton } from "./dom.js";
import { showText } from "./text.js";

const SHORT_MS = 2500;

export class MessageView {
  constructor(message, { language, actions }) {
    this.message = message;
    this.t = (key, values) => language.t(key, values);
    this.actions = actions;
    this.text = make("div", { class: "text" });
    this.notice = make("div", { class: "notice", hidden: true });
    this.node = make("article", { class: `message ${message.role}` });
    this.node.setAttribute("aria-label", this.t(message.role === "user" ? "you" : "answer"));
    const column = make("div", { class: "column" }, this.text, this.notice);
    if (message.role === "assistant") {
      this.node.append(make("div", { class: "avatar" }, icon("loop")));
      this.suggestion = make("div", { class: "suggestion", hidden: true });
      this.desk = make("div", { class: "desk" });
      column.append(this.suggestion, this.desk, this.makeTools());
    }
    this.node.append(column);
    this.update();
  }

  update() {
    const { message } = this;
    this.node.dataset.status = message.status;
    this.node.setAttribute("aria-busy", String(message.status === "streaming"));
    showText(this.text, message.content, { codeLabel: this.t("code") });
    this.showNotice();
    if (message.role === "assistant") {
      this.showRating();
      this.showSuggestion();
      this.timing.textContent = this.timingText();
    }
  }

  makeTools() {
    const { t, message, actions } = this;
    this.copyButton = iconButton("copy", t("copy"), () => this.copy());
    this.good = iconButton("up", t("good"), () => this.rate(1));
    this.bad = iconButton("down", t("bad"), () => this.rate(-1));
    this.pen = iconButton("pen", t("suggest"), () => this.openEditor());
    this.saved = make("span", { class: "saved", role: "status" });
    this.timing = make("span", { class: "timing" });
    const again = iconButton("again", t("regenerate"), () => actions.regenerate(message));
    const rating = make("span", { class: "rating" }, this.good, this.bad, this.pen);
    return make("div", { class: "tools" }, this.copyButton, rating, again, this.saved, this.timing);
  }

  async copy() {
    try {
      await copyText(this.message.content);
    } catch {
      this.say(this.t("copy_failed"));
      return;
    }
    this.copyButton.replaceChildren(icon("check"));
    this.say(this.t("copied"));
    setTimeout(() => this.copyButton.replaceChildren(icon("copy")), SHORT_MS);
  }

  // Words beside the buttons that go away by themselves.
  say(words) {
    this.saved.textContent = words;
    clearTimeout(this.hush);
    this.hush = setTimeout(() => (this.saved.textContent = ""), SHORT_MS * 2);
  }

  async rate(rating) {
    if (this.saving) return;
    const wish = this.message.rating === rating ? null : rating;
    await this.save({ rating: wish, correction: this.message.correction });
  }

  // Saves rating and suggestion together; true when the server has them.
  async save(feedback) {
    this.saving = true;
    this.showRating(feedback.rating);
    this.node.dataset.saving = "";
    this.saved.textContent = this.t("saving");
    clearTimeout(this.hush);
    try {
      await this.actions.saveFeedback(this.message, feedback);
      this.say(this.t("saved"));
      return true;
    } catch (error) {
      const reason = error.status ? error.message : this.t("unreachable");
      this.say(this.t("not_saved", { reason }));
      return false;
    } finally {
      this.saving = false;
      delete this.node.dataset.saving;
      this.showRating();
      this.showSuggestion();
    }
  }

  showRating(rating = this.message.rating) {
    this.node.toggleAttribute("data-ratable", Boolean(this.message.responseId));
    this.good.setAttribute("aria-pressed", String(rating === 1));
    this.bad.setAttribute("aria-pressed", String(rating === -1));
  }

  showSuggestion() {
    const { correction } = this.message;
    this.suggestion.hidden = !correction;
    if (!correction || this.suggestion.dataset.shows === correction) return;
    this.suggestion.dataset.shows = correction;
    const words = make("p", { dir: "auto" }, correction);
    this.suggestion.replaceChildren(make("span", { class: "caption" }, this.t("suggestion")), words);
  }

  openEditor(text = this.message.correction ?? this.message.content) {
    if (this.area) {
      this.area.focus();
      return;
    }
    const { t } = this;
    this.area = make("textarea", { rows: 2, maxLength: 20_000 });
    this.area.setAttribute("aria-label", t("suggestion_label"));
    this.area.value = text;
    this.area.addEventListener("input", () => fitHeight(this.area));
    this.area.addEventListener("keydown", (event) => this.editorKey(event));
    this.desk.replaceChildren(
      make("p", { class: "caption" }, t("suggestion_label")),
      this.area,
      make(
        "div",
        { class: "row" },
        make("span", { class: "note" }, t("suggestion_note")),
        textButton(t("cancel"), () => this.closeEditor()),
        textButton(t("save"), () => this.saveEditor(), "plain strong"),
      ),
    );
    fitHeight(this.area);
    this.area.focus({ preventScroll: true });
    this.desk.scrollIntoView({ block: "nearest" });
  }

  editorKey(event) {
    if (event.isComposing) return;
    if (event.key === "Escape") {
      event.stopPropagation(); // Escape elsewhere stops a running answer
      this.closeEditor();
    } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.saveEditor();
  }

  closeEditor() {
    this.desk.replaceChildren();
    this.area = null;
    this.pen.focus();
  }

  async saveEditor() {
    const correction = this.area.value.trim();
    if (this.saving || !correction || correction === this.message.content.trim()) return;
    const isSaved = await this.save({ rating: this.message.rating, correction });
    if (isSaved && this.area) this.closeEditor();
  }

  showNotice() {
    const { message, t } = this;
    const words = this.noticeWords();
    this.notice.hidden = !words;
    this.notice.replaceChildren();
    if (!words) return;
    this.notice.append(make("span", {}, words));
    const { retry, edit } = this.actions;
    if (message.status === "broken") this.notice.append(textButton(t("retry"), () => retry(message), "link retry"));
    if (message.status === "failed") {
      if (message.error !== "too_long") {
        this.notice.append(textButton(t("retry"), () => retry(message), "link retry"));
      }
      this.notice.append(textButton(t("edit"), () => edit(message), "link"));
    }
  }

  noticeWords() {
    const { message, t } = this;
    const reason = message.error;
    if (message.status === "stopped") return t("stopped");
    if (message.status === "broken") return reason ? t("broken_with", { reason }) : t("broken");
    if (message.status === "failed" && reason === "too_long") return t("too_long");
    if (message.status === "failed") return reason ? t("failed_with", { reason }) : t("failed");
    if (message.finish === "length") return t("cut");
    if (message.finish === "context") return t("cut_context");
    if (message.role === "assistant" && message.status === "done" && !message.content) return t("empty");
    return "";
  }

  timingText() {
    const { timing } = this.message;
    if (!timing) return "";
    return this.t(timing.rate ? "timing" : "timing_first", timing);
  }
}
