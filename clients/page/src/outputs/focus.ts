/**
 * Which output's frame may have the keyboard, and what happens when another one takes it: what is typed next may be a
 * password.
 *
 * A person goes into a frame with Tab, or with a pointer that moves over it: a shield in front of the frame notices
 * that, and gives way. A key that is typed in the page brings the shield back. No browser lets a page forbid a frame to
 * take the keyboard by itself, so it goes back where it was then, and the frame gets the event `TAKEN`, after which it
 * is not shown any more.
 */

import { signal } from "@preact/signals";

export const TAKEN = "kb-keyboard-taken";
/** The frame without a shield. */
export const opened = signal<HTMLIFrameElement | null>(null);

export function guardFocus(): void {
  let before: Element | null = document.activeElement;
  let byTab = false;
  addEventListener("focusin", ({ target }) => {
    if (!isFrame(target)) before = target as Element;
  });
  addEventListener(
    "keydown",
    ({ key }) => {
      byTab = key === "Tab";
      opened.value = null;
    },
    true,
  );
  addEventListener("pointerdown", () => (byTab = false), true);
  addEventListener("blur", () => {
    const tabbed = byTab;
    byTab = false;
    // Which element has the keyboard now is known only after this event.
    setTimeout(() => {
      const active = document.activeElement;
      if (!isFrame(active) || active === opened.peek() || tabbed) return;
      active.dispatchEvent(new CustomEvent(TAKEN));
      if (before instanceof HTMLElement && before.isConnected) before.focus();
      else active.blur();
    });
  });
}

function isFrame(target: unknown): target is HTMLIFrameElement {
  return target instanceof HTMLIFrameElement && target.classList.contains("frame");
}
