/**
 * Which output's frame may have the keyboard: only one where a person went, with a pointer or with Enter.
 *
 * All others are `inert`, so their scripts cannot take the keyboard: what is typed next may be a password. While a
 * person types somewhere in the page, a pointer that only lies over a frame does not open it.
 */

let open: HTMLIFrameElement | null = null;

/** Let a frame have pointer and keyboard. */
export function openFrame(frame: HTMLIFrameElement): void {
  if (open !== null && open !== frame) closeFrame();
  open = frame;
  frame.inert = false;
}

/** Take both from the frame that has them. */
export function closeFrame(): void {
  if (open !== null) open.inert = true;
  open = null;
}

/** Open a frame for a pointer that is over it, unless somebody types elsewhere. */
export function hoverFrame(frame: HTMLIFrameElement): void {
  if (!isField(document.activeElement)) openFrame(frame);
}

/** Close the frame when the pointer leaves it, unless it has been given the keyboard. */
export function leaveFrame(frame: HTMLIFrameElement): void {
  if (open === frame && document.activeElement !== frame) closeFrame();
}

/** Close frames as soon as somebody begins to type in the page. */
export function guardFocus(): void {
  addEventListener("focusin", ({ target }) => {
    if (target !== open && isField(target)) closeFrame();
  });
}

function isField(target: unknown): boolean {
  return target instanceof Element && target.closest("input, textarea, select, [contenteditable=true]") !== null;
}
