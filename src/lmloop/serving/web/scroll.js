// Keeps the newest text in sight, but only for a person who is at the bottom.
// Takes: the scrolling element, the jump button, and whether there is anything to follow. Gives: follow() after content grew, jump() to the end.

const NEAR_PX = 48;

export class Follower {
  constructor(scroller, button, hasContent) {
    this.scroller = scroller;
    this.button = button;
    this.hasContent = hasContent; // the welcome is read from its top
    this.isFollowing = true;
    this.lastTop = 0;
    scroller.addEventListener("scroll", () => this.notice(), { passive: true });
    button.addEventListener("click", () => this.jump({ smooth: true }));
    new ResizeObserver(() => this.follow()).observe(scroller);
  }

  get distance() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    return scrollHeight - scrollTop - clientHeight;
  }

  // Only scrolling up lets go: content that grows while we scroll down must not.
  notice() {
    const top = this.scroller.scrollTop;
    if (this.distance <= NEAR_PX) this.isFollowing = true;
    else if (top < this.lastTop) this.isFollowing = false;
    this.lastTop = top;
    this.show();
  }

  follow() {
    if (this.isFollowing && this.hasContent()) this.scroller.scrollTop = this.scroller.scrollHeight;
    this.show();
  }

  jump({ smooth = false } = {}) {
    this.isFollowing = true;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const behavior = smooth && !calm ? "smooth" : "instant";
    this.scroller.scrollTo({ top: this.scroller.scrollHeight, behavior });
    this.show();
  }

  show() {
    this.button.hidden = this.isFollowing || this.distance <= NEAR_PX;
    document.documentElement.toggleAttribute("data-scrolled", this.scroller.scrollTop > 4);
  }
}
