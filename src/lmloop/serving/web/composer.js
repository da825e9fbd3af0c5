// The input: grows with its text, sends on Enter, keeps its draft over a reload.
// Takes: callbacks. Gives: the text that was typed, once.

import { fitHeight } from "./dom.js";
import { recall, remember } from "./state.js";

export class Composer {
  constructor({ onSend, onStop, mayStop }) {
    this.area = document.getElementById("prompt");
    this.callbacks = { onSend, onStop, mayStop };
    this.area.value = recall("draft", "");
    this.area.addEventListener("input", () => this.grow());
    this.area.addEventListener("keydown", (event) => this.onKey(event));
    document.getElementById("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (mayStop()) onStop();
      else this.send();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && mayStop() && !document.querySelector("dialog[open]")) onStop();
    });
    this.grow();
    if (matchMedia("(pointer: fine)").matches) this.focus(); // on a phone it would open the keyboard
  }

  onKey(event) {
    // While an input method composes (Chinese, Japanese), Enter chooses a candidate.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    if (!this.callbacks.mayStop()) this.send();
  }

  send() {
    if (!this.callbacks.onSend(this.area.value)) return;
    this.area.value = "";
    this.grow();
  }

  // Puts text back, before what may have been typed meanwhile.
  put(text) {
    const typed = this.area.value.trim();
    this.area.value = typed ? `${text}\n${typed}` : text;
    this.grow();
    this.focus();
  }

  grow() {
    fitHeight(this.area);
    document.documentElement.toggleAttribute("data-empty", this.area.value.trim() === "");
    remember("draft", this.area.value);
  }

  focus() {
    this.area.focus({ preventScroll: true });
  }
}
