/** The colours of terminals: those of the page, which has light and dark ones. */

import type { ITheme } from "@xterm/xterm";

const COLOURS = ["black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"] as const;

type Colour = (typeof COLOURS)[number];
type Bright = `bright${Capitalize<Colour>}`;

/**
 * Return the theme of an emulator.
 * @param value Returns the value of a custom property of CSS.
 */
export function themeFrom(value: (property: string) => string): ITheme {
  const theme: ITheme = {
    background: value("--background"),
    foreground: value("--text"),
    cursor: value("--text"),
    cursorAccent: value("--background"),
    selectionBackground: value("--selection"),
    scrollbarSliderBackground: value("--border"),
    scrollbarSliderHoverBackground: value("--strong-border"),
    scrollbarSliderActiveBackground: value("--strong-border"),
  };
  for (const colour of COLOURS) {
    theme[colour] = value(`--ansi-${colour}`);
    theme[`bright${colour[0]!.toUpperCase()}${colour.slice(1)}` as Bright] = value(`--ansi-bright-${colour}`);
  }
  return theme;
}

/** Return the theme of the page as it is now. */
export function pageTheme(): ITheme {
  const style = getComputedStyle(document.documentElement);
  return themeFrom((property) => style.getPropertyValue(property).trim());
}

/** Call `changed` when the page changes between light and dark. Returns the function that ends this. */
export function onThemeChange(changed: () => void): () => void {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", changed);
  return () => dark.removeEventListener("change", changed);
}
