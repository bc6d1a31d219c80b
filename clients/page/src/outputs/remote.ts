/** Which hosts an output's HTML loads something from. The frames of outputs have no network, so that must be said. */

/** Return the hosts, sorted. The document that is parsed here is inert: nothing of it runs or is loaded. */
export function remoteHosts(html: string): string[] {
  const document = new DOMParser().parseFromString(html, "text/html");
  const addresses = [
    ...document.querySelectorAll("script[src], img[src], iframe[src], link[rel~=stylesheet][href]"),
  ].map((element) => element.getAttribute("src") ?? element.getAttribute("href") ?? "");
  for (const script of document.querySelectorAll("script:not([src])")) {
    const text = script.textContent ?? "";
    // A library that is part of the output has addresses in its text that it never asks for.
    if (text.length > 100_000) continue;
    for (const found of text.matchAll(/["'`](https?:\/\/[^"'`\s]+)["'`]/g)) {
      if (/\b(?:import|require|src|paths|load|fetch)\b/i.test(text)) addresses.push(found[1]!);
    }
  }
  const hosts = addresses.flatMap((address) => {
    const found = /^(?:https?:)?\/\/([^/?#]+)/i.exec(address.trim());
    return found === null ? [] : [found[1]!.toLowerCase()];
  });
  return [...new Set(hosts)].filter((host) => !/^www\.w3\.org$/.test(host)).sort();
}
