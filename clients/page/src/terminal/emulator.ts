/** The emulator: xterm.js with what this page allows programs to do. Loaded when the first terminal is shown. */

import "@xterm/xterm/css/xterm.css";

import { FitAddon } from "@xterm/addon-fit";
import { Terminal } from "@xterm/xterm";

import { clipboardRequest } from "./clipboard.js";
import { Leaving } from "./leaving.js";
import { allowedLink } from "./links.js";
import { onThemeChange, pageTheme } from "./palette.js";
import { openUnderPolicy } from "./policy.js";

export interface EmulatorEvents {
  /** The person typed, or the emulator answers the program. */
  data: (data: string) => void;
  /** The pointer is over a link, or over none any more. */
  link: (address: string) => void;
  /** A program uses the clipboard, or a link was refused. */
  problem: (text: string) => void;
  /** Was what is drawn now written earlier, so that it asks for nothing? */
  isOld: () => boolean;
  /** May programs write the clipboard? */
  mayWriteClipboard: () => boolean;
}

const LINES = 5_000;

/** Return an emulator in an element. */
export function makeEmulator(host: HTMLElement, description: string, events: EmulatorEvents) {
  const emulator = new Terminal({
    fontFamily: getComputedStyle(document.documentElement).getPropertyValue("--mono").trim() || "monospace",
    fontSize: 14,
    scrollback: LINES,
    minimumContrastRatio: 4.5,
    theme: pageTheme(),
    linkHandler: {
      allowNonHttpProtocols: true, // so that `mailto:` is a link; the rest is refused here, and said
      activate: (_event, uri) => openLink(uri, events),
      hover: (_event, uri) => events.link(uri),
      leave: () => events.link(""),
    },
  });
  const fit = new FitAddon();
  emulator.loadAddon(fit);
  emulator.parser.registerOscHandler(52, (data) => {
    if (!events.isOld()) void useClipboard(data, events);
    return true;
  });
  openUnderPolicy(emulator, host);
  const leaving = new Leaving();
  emulator.attachCustomKeyEventHandler((event) => {
    if (event.type === "keydown" && event.ctrlKey && event.shiftKey && event.code === "KeyC") {
      event.preventDefault();
      if (emulator.hasSelection()) document.execCommand("copy"); // xterm.js puts its selection there
      return false;
    }
    return !leaving.leaves(event);
  });
  emulator.textarea?.setAttribute("aria-describedby", description);
  emulator.textarea?.addEventListener("blur", () => leaving.blur());
  emulator.onData(events.data);
  const end = onThemeChange(() => (emulator.options.theme = pageTheme()));
  return {
    emulator,
    /** Return the size that fills the element; null while it is hidden. */
    fitting(): { rows: number; cols: number } | null {
      if (host.clientWidth === 0 || host.clientHeight === 0) return null;
      const size = fit.proposeDimensions();
      if (size === undefined || !Number.isFinite(size.rows) || !Number.isFinite(size.cols)) return null;
      return { rows: Math.min(size.rows, 1000), cols: Math.min(size.cols, 1000) };
    },
    dispose() {
      end();
      emulator.dispose();
    },
  };
}

export type Emulator = ReturnType<typeof makeEmulator>;

function openLink(uri: string, { problem }: EmulatorEvents): void {
  const address = allowedLink(uri);
  if (address === null) {
    problem(`The link was not opened (${uri.slice(0, 200)}): only http, https and mailto are opened from a terminal.`);
  } else window.open(address, "_blank", "noopener,noreferrer");
}

async function useClipboard(data: string, { problem, mayWriteClipboard }: EmulatorEvents): Promise<void> {
  const request = clipboardRequest(data);
  if (request === null) return;
  if (request.kind === "read") return problem("A program asked for the clipboard's content. It got none.");
  if (!mayWriteClipboard()) {
    return problem("A program tried to write the clipboard. It may when you allow that below the terminal.");
  }
  try {
    await navigator.clipboard.writeText(request.text);
  } catch (error) {
    problem(`A program's text was not copied: the browser refused it (${String(error)}).`);
  }
}
