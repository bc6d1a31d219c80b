/** The server that the page came from, and how the page logs in there. */

export interface Login {
  token: string | null;
  /** The user, for a server without authentication. */
  user: string | null;
}

/** Seconds that the server has to say whether it needs a token. */
const PATIENCE = 15;
const TOKEN = "kernelbridge:token";
/** Where the browser keeps nothing. */
let held: string | null = null;

export const base = (): string => new URL(".", document.baseURI).href;

/** Return whether the server takes the login. Throws why it does not answer. */
export async function admits({ token }: Login): Promise<boolean> {
  const answer = await get("api/schema", token);
  if (answer.ok) return true;
  if (answer.status === 401 || answer.status === 429) return false;
  const told = (await answer.json().catch(() => null)) as { reason?: string } | null;
  throw new Error(`The server refuses this page: ${told?.reason ?? `HTTP status ${answer.status}`}`);
}

export interface Usage {
  memory: number | null;
  disk: number | null;
}

/** Return what the user's sessions use, by name, if the server tells it: to administrators, who see all users'. */
export async function usage({ token }: Login, user: string | null): Promise<Map<string, Usage>> {
  try {
    const answer = await get("api/sessions", token);
    if (!answer.ok) return new Map();
    const { sessions } = (await answer.json()) as { sessions: (Usage & { session: string; user: string | null })[] };
    const own = sessions.filter((each) => each.user === user);
    return new Map(own.map(({ session, memory, disk }) => [session, { memory, disk }]));
  } catch {
    return new Map();
  }
}

async function get(path: string, token: string | null): Promise<Response> {
  const headers: Record<string, string> = token === null ? {} : { Authorization: `Bearer ${token}` };
  try {
    return await fetch(new URL(path, base()), { headers, signal: AbortSignal.timeout(PATIENCE * 1000) });
  } catch (error) {
    const late = error instanceof DOMException && error.name === "TimeoutError";
    throw new Error(`The server does not answer${late ? ` within ${PATIENCE} s` : ""}. Does it still run?`);
  }
}

/** The token is kept until this tab is closed, so that the page can be loaded again. */
export function keptToken(): string | null {
  try {
    return sessionStorage.getItem(TOKEN) ?? held;
  } catch {
    return held;
  }
}

export function keepToken(token: string | null): void {
  held = token;
  try {
    if (token === null) sessionStorage.removeItem(TOKEN);
    else sessionStorage.setItem(TOKEN, token);
  } catch {
    // then it must be entered again after the page was loaded again
  }
}
