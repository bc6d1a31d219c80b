/** Names of terminals. The server keeps them, so all tabs of a session show the same. */

const NUMBERED = /^terminal-(\d+)$/;

/** Return the first free name. */
export function nextName(taken: readonly string[]): string {
  for (let number = 1; ; number += 1) {
    const name = `terminal-${number}`;
    if (!taken.includes(name)) return name;
  }
}

/** Return the name as people see it. */
export function labelOf(name: string): string {
  const number = NUMBERED.exec(name)?.[1];
  return number === undefined ? name : `Terminal ${number}`;
}

/** Return the names in the order of their numbers; other names come last. */
export function inOrder(names: readonly string[]): string[] {
  const number = (name: string) => Number(NUMBERED.exec(name)?.[1] ?? Infinity);
  return [...names].sort((a, b) => number(a) - number(b) || (a < b ? -1 : 1));
}
