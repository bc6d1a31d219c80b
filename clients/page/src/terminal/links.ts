/** Which links of a program (OSC 8) may be opened. */

const ALLOWED = new Set(["http:", "https:", "mailto:"]);

/** Return the address that may be opened, as the browser understands it; null for any other. */
export function allowedLink(uri: string): string | null {
  try {
    const url = new URL(uri);
    return ALLOWED.has(url.protocol) ? url.href : null;
  } catch {
    return null; // a relative address would be one of the page itself
  }
}
