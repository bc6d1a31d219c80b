/**
 * xterm.js under the page's Content-Security-Policy, which refuses `<style>` without a nonce and `style="…"`.
 *
 * xterm.js makes its `<style>` elements while it opens, all by `document.createElement`. It sets colours outside its
 * palette by `setAttribute("style", …)` in one method. Both have no public setting (6.0). The tests notice if a newer
 * version does it in another way: the browser reports what the policy refuses.
 */

import type { Terminal } from "@xterm/xterm";

import { STYLE_NONCE } from "../style-nonce.js";

interface RowFactory {
  _addStyle?: (element: HTMLElement, style: string) => void;
}

interface Internals {
  _core?: { _renderService?: { _renderer?: { value?: { _rowFactory?: RowFactory } } } };
}

/** Open an emulator in an element. */
export function openUnderPolicy(emulator: Terminal, host: HTMLElement): void {
  const original = Object.getPrototypeOf(document).createElement as Document["createElement"];
  const withNonce = (name: string, options?: ElementCreationOptions) => {
    const element = original.call(document, name, options);
    if (element instanceof HTMLStyleElement) element.nonce = STYLE_NONCE;
    return element;
  };
  document.createElement = withNonce as Document["createElement"];
  try {
    emulator.open(host);
  } finally {
    delete (document as { createElement?: unknown }).createElement; // the prototype has it
  }
  const rows = (emulator as unknown as Internals)._core?._renderService?._renderer?.value?._rowFactory;
  if (rows !== undefined) rows._addStyle = (element, style) => void (element.style.cssText += `${style};`);
}
