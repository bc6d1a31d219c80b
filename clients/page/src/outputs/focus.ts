/**
 * Notices when an output's frame takes the keyboard by itself: what is typed next may be a password.
 *
 * No browser lets a page forbid it. So the keyboard goes back where it was, and the frame gets the event `TAKEN`, after
 * which it is not shown any more. A person goes into a frame with a pointer that entered it after the last key, or with
 * Tab.
 */

export const TAKEN = "kb-keyboard-taken";

export function guardFocus(): void {
  let before: Element | null = document.activeElement;
  /** Whether the pointer has left the page's own elements since the last key: it may be over a frame. */
  let away = false;
  let byTab = false;
  addEventListener("focusin", ({ target }) => {
    if (!isFrame(target)) before = target as Element;
  });
  addEventListener("pointerout", () => (away = true));
  addEventListener("pointerover", ({ target }) => (away = isFrame(target)));
  addEventListener(
    "keydown",
    ({ key }) => {
      byTab = key === "Tab";
      away = false;
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
      if (!isFrame(active) || away || tabbed) return;
      active!.dispatchEvent(new CustomEvent(TAKEN));
      if (before instanceof HTMLElement && before.isConnected) before.focus();
      else (active as HTMLElement).blur();
    });
  });
}

function isFrame(target: unknown): boolean {
  return target instanceof HTMLIFrameElement && target.classList.contains("frame");
}
