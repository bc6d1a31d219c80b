/** What the browser keeps of a user's session. It may refuse to: in private windows, or when its storage is full. */

export interface Kept {
  get(key: string): string | null;
  /** Return whether it is kept. */
  set(key: string, value: string): boolean;
  remove(key: string): void;
}

/** Return the storage of a server's page, user and session. */
export function storageOf(storage: () => Storage, path: string, user: string | null, session: string): Kept {
  const prefix = ["kernelbridge", path, user ?? "", session].map(encodeURIComponent).join(":");
  const attempt = <T>(work: (storage: Storage) => T, otherwise: T): T => {
    try {
      return work(storage());
    } catch {
      return otherwise; // also reading `localStorage` itself may throw
    }
  };
  return {
    get: (key) => attempt((each) => each.getItem(`${prefix}:${key}`), null),
    set: (key, value) =>
      attempt((each) => {
        each.setItem(`${prefix}:${key}`, value);
        return true;
      }, false),
    remove: (key) => attempt((each) => each.removeItem(`${prefix}:${key}`), undefined),
  };
}

export function parsed<T>(text: string | null): T | null {
  try {
    return text === null ? null : (JSON.parse(text) as T);
  } catch {
    return null;
  }
}
