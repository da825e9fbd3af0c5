// Notices that the server is back after it was lost.
// Takes: isReady() and a callback. Gives: `online`, and the callback with true or false at each change.

const FIRST_WAIT_MS = 400;
const LONGEST_WAIT_MS = 4000;

export class Connection {
  constructor({ isReady, onChange }) {
    this.online = true;
    this.isReady = isReady;
    this.onChange = onChange;
    this.polling = false;
    this.wake = () => {};
    window.addEventListener("online", () => this.wake());
    document.addEventListener("visibilitychange", () => this.wake());
  }

  // Called after a failed request: asks at once, and tells only if the server is really away.
  async lost() {
    if (this.polling) return;
    this.polling = true;
    let wait = FIRST_WAIT_MS;
    while (!(await this.isReady())) {
      if (this.online) this.change(false);
      await this.pause(wait);
      wait = Math.min(wait * 1.5, LONGEST_WAIT_MS);
    }
    this.polling = false;
    if (!this.online) this.change(true);
  }

  change(online) {
    this.online = online;
    this.onChange(online);
  }

  pause(milliseconds) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      this.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}
