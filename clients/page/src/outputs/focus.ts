/**
 * Keeps the keyboard in the page when an output's frame takes it by itself: what is typed next may be a password.
 *
 * A frame may have the keyboard only if a person went there: with a pointer, or with Tab.
 */

export function guardFocus(): void {
  let before: Element | null = document.activeElement;
  let over: Element | null = null;
  let tabbed = false;
  addEventListener("focusin", (event) => {
    if (!isFrame(event.target)) before = event.target as Element;
  });
  addEventListener("pointerover", (event) => (over = isFrame(event.target) ? (event.target as Element) : null));
  addEventListener(
    "keydown",
    (event) => {
      tabbed = event.key === "Tab";
      if (tabbed) setTimeout(() => (tabbed = false));
    },
    true,
  );
  addEventListener("blur", () => {
    const byTab = tabbed;
    // The element that is active is known only after this event.
    setTimeout(() => {
      const active = document.activeElement;
      if (!isFrame(active) || active === over || byTab) return;
      (active as HTMLElement).blur();
      if (before instanceof HTMLElement && before.isConnected) before.focus();
      else window.focus();
    });
  });
}

function isFrame(target: unknown): boolean {
  return target instanceof HTMLIFrameElement && target.classList.contains("frame");
}
