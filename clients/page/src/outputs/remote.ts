/** Which hosts an output's HTML loads something from; pure. Frames of outputs have no network, so that must be said. */

/** Elements that load what they name. */
const LOADS = /<(?:script|img|iframe|link|video|audio|source)\b[^>]{0,2000}?\s(?:src|href)\s*=\s*["']?([^"'\s>]+)/gi;
const SCRIPT = /<script\b[^>]{0,2000}>([\s\S]*?)<\/script/gi;
const ADDRESS = /["'`](https?:\/\/[^"'`\s]{1,2000})["'`]/g;
/** Characters of a script; a longer one is a library, with addresses in its text that it never asks for. */
const LIBRARY = 100_000;

/** Return the hosts, sorted. It reads the text only: a document would be subject to the policy of the page. */
export function remoteHosts(html: string): string[] {
  const addresses = [...html.matchAll(LOADS)].map((found) => found[1]!);
  for (const [, text] of html.matchAll(SCRIPT)) {
    if (text!.length > LIBRARY || !/\b(?:import|require|src|paths|load|fetch)\b/i.test(text!)) continue;
    addresses.push(...[...text!.matchAll(ADDRESS)].map((found) => found[1]!));
  }
  const hosts = addresses.flatMap((address) => {
    const found = /^(?:https?:)?\/\/([^/?#]+)/i.exec(address);
    return found === null ? [] : [found[1]!.toLowerCase()];
  });
  return [...new Set(hosts)].filter((host) => host !== "www.w3.org").sort();
}
