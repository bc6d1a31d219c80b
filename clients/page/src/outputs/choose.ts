/** Which form of a display is shown; pure. */

import type { Data } from "./outputs.js";

export const TRACEBACK = "application/vnd.kernelbridge.traceback";
export const WIDGET = "application/vnd.jupyter.widget-view+json";
export const TABLE = "application/vnd.dataresource+json";
const PICTURES = ["image/svg+xml", "image/png", "image/jpeg", "image/gif", "image/webp"];

/** The best first. A library that shows HTML or JavaScript has also a plain form, which says less. */
const ORDER = [
  TRACEBACK,
  WIDGET,
  "text/html",
  "application/javascript",
  "text/javascript",
  ...PICTURES,
  TABLE,
  "text/markdown",
  "text/latex",
  "application/json",
  "text/plain",
];

export function choose(data: Data): string | null {
  return ORDER.find((mime) => Object.hasOwn(data, mime)) ?? Object.keys(data)[0] ?? null;
}

export function isPicture(mime: string): boolean {
  return PICTURES.includes(mime);
}

/** Return a value of a bundle as text. */
export function textOf(value: unknown): string {
  if (typeof value === "string") return value;
  if (Array.isArray(value) && value.every((each) => typeof each === "string")) return value.join("");
  return JSON.stringify(value) ?? "";
}

/** Return the picture as an address for `<img>`, where no script can run. */
export function pictureAddress(mime: string, value: unknown): string {
  const text = textOf(value);
  if (mime === "image/svg+xml") return `data:${mime},${encodeURIComponent(text.replace(/\p{Surrogate}/gu, "\ufffd"))}`;
  return `data:${mime};base64,${text.replace(/[^A-Za-z0-9+/=]/g, "")}`;
}
