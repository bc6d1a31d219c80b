/** What the page's address says behind `#`, which browsers do not send: the session, the user, and once a token. */

export interface Address {
  session: string | null;
  user: string | null;
  token: string | null;
}

export function readAddress(hash: string): Address {
  const values = new URLSearchParams(hash.replace(/^#/, ""));
  const of = (name: string) => values.get(name) || null;
  return { session: of("session"), user: of("user"), token: of("token") };
}

/** Write it without the token, which must not stay in the history. */
export function writeAddress({ session, user }: Omit<Address, "token">): string {
  const values = new URLSearchParams();
  if (session !== null) values.set("session", session);
  if (user !== null) values.set("user", user);
  const text = values.toString();
  return text ? `#${text}` : "";
}

/** Return why a session cannot have this name, or an empty string. */
export function nameProblem(name: string): string {
  if (name === "" || name === "." || name === "..") return "Enter a name.";
  if (name.length > 128) return "A name has at most 128 characters.";
  return /^[A-Za-z0-9._-]+$/.test(name) ? "" : "A name has letters, digits, '.', '_' and '-' only.";
}
