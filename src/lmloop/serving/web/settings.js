// The settings sheet, and the choices beside it: appearance, language, consent.
// Takes: Settings and callbacks. Gives: changes kept at once, nothing to submit.

import { recall, remember } from "./state.js";

const RANGES = ["temperature", "top_p", "max_tokens"];

const byId = (id) => document.getElementById(id);
const systemDark = matchMedia("(prefers-color-scheme: dark)");

export class SettingsSheet {
  constructor(settings) {
    this.settings = settings;
    this.dialog = byId("settings");
    byId("open-settings").addEventListener("click", () => this.open());
    byId("close-settings").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close(); // outside the sheet
    });
    for (const name of RANGES) {
      byId(name).addEventListener("input", () => {
        settings.set(name, Number(byId(name).value));
        this.showValue(name);
      });
    }
    byId("seed").addEventListener("input", () => settings.set("seed", this.readSeed()));
    byId("system").addEventListener("input", () => settings.set("system", byId("system").value));
    byId("reset-settings").addEventListener("click", () => {
      settings.reset();
      this.show();
    });
  }

  open() {
    this.show();
    this.dialog.showModal();
  }

  show() {
    byId("max_tokens").max = this.settings.longest;
    for (const name of RANGES) {
      byId(name).value = this.settings.get(name);
      this.showValue(name);
    }
    byId("seed").value = this.settings.get("seed") ?? "";
    byId("system").value = this.settings.get("system");
  }

  showValue(name) {
    const value = this.settings.get(name);
    byId(`${name}-value`).textContent = name === "max_tokens" ? String(value) : value.toFixed(2);
  }

  readSeed() {
    const field = byId("seed");
    return field.value !== "" && field.validity.valid ? Number(field.value) : null;
  }
}

// Light or dark: the person's choice, or the system's while there is none.
export class Appearance {
  constructor() {
    this.choice = recall("theme") ?? "system";
    systemDark.addEventListener("change", () => this.apply());
    byId("theme").addEventListener("click", () => this.choose(this.isDark ? "light" : "dark"));
    for (const radio of this.radios) {
      radio.addEventListener("change", () => this.choose(radio.value));
    }
    this.apply();
  }

  get radios() {
    return document.querySelectorAll("input[name=appearance]");
  }

  get isDark() {
    return this.choice === "system" ? systemDark.matches : this.choice === "dark";
  }

  choose(choice) {
    this.choice = choice;
    remember("theme", choice === "system" ? null : choice);
    this.apply();
  }

  apply() {
    document.documentElement.dataset.theme = this.isDark ? "dark" : "light";
    for (const radio of this.radios) radio.checked = radio.value === this.choice;
  }
}

// Whether the text of the chat may be kept to improve the model. Off until the person says yes.
export class Consent {
  constructor(language) {
    this.language = language;
    this.box = byId("consent");
    this.box.checked = recall("consent") === true;
    this.box.addEventListener("change", () => {
      remember("consent", this.box.checked);
      this.show();
    });
    this.show();
  }

  show() {
    const note = byId("consent-note");
    note.dataset.text = this.given ? "consent_on" : "consent_off";
    note.textContent = this.language.t(note.dataset.text);
  }

  get given() {
    return this.box.checked;
  }
}
