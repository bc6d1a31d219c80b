/** Decides what is shown: the login, the list of sessions, or one session. */

import { useEffect, useState } from "preact/hooks";

import { readAddress, writeAddress } from "../state/address.js";
import { messageOf } from "../state/runs.js";
import { admits, keepToken, keptToken, type Login as LoginOf } from "../state/server.js";
import { Login } from "./Login.js";
import { Notices } from "./Notices.js";
import { Sessions } from "./Sessions.js";
import { SessionView } from "./SessionView.js";

type Admission = "unknown" | "yes" | "no";

const REFUSED = "The server does not accept this token: it is wrong, expired or revoked.";

export function App() {
  const [address, setAddress] = useState(takeAddress);
  const [login, setLogin] = useState<LoginOf>(() => ({ token: keptToken(), user: address.user }));
  const [admitted, setAdmitted] = useState<Admission>("unknown");
  const [problem, setProblem] = useState("");
  const [attempt, setAttempt] = useState(0);

  useEffect(() => {
    const changed = () => {
      const next = takeAddress();
      setAddress(next);
      setLogin((old) => ({ token: keptToken() ?? old.token, user: next.user }));
    };
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);

  useEffect(() => {
    let wanted = true;
    setProblem("");
    admits(login).then(
      (yes) => {
        if (!wanted) return;
        setAdmitted(yes ? "yes" : "no");
        if (yes) keepToken(login.token);
        else if (login.token !== null) refuse(REFUSED);
      },
      (error: unknown) => wanted && setProblem(messageOf(error)),
    );
    return () => {
      wanted = false;
    };
  }, [login.token, login.user, attempt]);

  const refuse = (why: string) => {
    keepToken(null);
    setProblem(why);
    setAdmitted("no");
  };
  const go = (session: string | null) => {
    const next = { ...address, session };
    // It is shown at once, and the address follows: `hashchange` finds nothing new.
    history.pushState(null, "", writeAddress(next) || location.pathname + location.search);
    setAddress(next);
  };
  const leave = () => {
    keepToken(null);
    setLogin({ ...login, token: null });
    setAdmitted("unknown");
  };

  useEffect(() => {
    const back = () => setAddress(takeAddress());
    addEventListener("popstate", back);
    return () => removeEventListener("popstate", back);
  }, []);

  useEffect(() => {
    document.title = address.session === null ? "kernelbridge" : `${address.session} · kernelbridge`;
  }, [address.session]);

  return (
    <>
      <header class="top">
        <a
          class="brand"
          href={writeAddress({ ...address, session: null }) || "#"}
          onClick={(event) => {
            event.preventDefault();
            go(null);
          }}
        >
          kernelbridge
        </a>
        {address.session !== null && admitted === "yes" && <span class="session-name">{address.session}</span>}
        <span class="spacer" />
        {login.token !== null && admitted === "yes" && (
          <button type="button" class="plain" onClick={leave}>
            Log out
          </button>
        )}
      </header>
      {admitted === "unknown" ? (
        <main class="narrow">
          {problem ? (
            <p role="alert">
              {problem}{" "}
              <button type="button" onClick={() => setAttempt(attempt + 1)}>
                Try again
              </button>
            </p>
          ) : (
            <p role="status">Asking the server…</p>
          )}
        </main>
      ) : admitted === "no" ? (
        <Login
          problem={problem}
          onToken={(token) => {
            setProblem("");
            setLogin({ ...login, token });
            setAttempt(attempt + 1);
          }}
        />
      ) : address.session === null ? (
        <Sessions login={login} onOpen={go} onRefused={refuse} />
      ) : (
        <SessionView
          key={address.session}
          name={address.session}
          login={login}
          onLeave={() => go(null)}
          onRefused={refuse}
        />
      )}
      <Notices />
    </>
  );
}

/** Read the address, and take the token out of it: it must not stay in the history. */
function takeAddress() {
  const { token, ...address } = readAddress(location.hash);
  if (token !== null) {
    keepToken(token);
    history.replaceState(null, "", writeAddress(address) || location.pathname + location.search);
  }
  return address;
}
