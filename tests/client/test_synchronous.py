"""The synchronous client, in threads, running loops, forks and at the end of the interpreter."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from kernelbridge import (
    Client,
    Closed,
    CodeError,
    CommandFailed,
    Output,
    RequestRefused,
    Result,
    RunTimeout,
    Session,
    Started,
    WaitTimeout,
)
from kernelbridge.client.loop_thread import loop_thread
from tests.client.servers import PATIENCE, ServerProcess, Wire


@pytest.fixture(scope="module")
def shared(server: ServerProcess) -> Iterator[Session]:
    """A session for tests that leave nothing in it."""
    with Client(server.url, user_id="shared") as client, client.session() as session:
        yield session


def test_ten_lines_bring_text_and_pictures(shared: Session) -> None:
    code = "import matplotlib; matplotlib.use('module://matplotlib_inline.backend_inline')\n"
    code += "import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()\nprint('plotted')\n6*7"
    result = shared.run(code, timeout=60)
    assert (result.success, result.error, result.text) == (True, None, "plotted\n42\n")
    assert result.data["text/plain"] == "42"
    [image] = result.images
    assert image.mime == "image/png"
    assert image.png is not None
    assert image.png.startswith(b"\x89PNG")
    assert "data:image/png;base64," in result._repr_html_()


def test_errors_of_the_code_are_results_unless_they_are_asked_for(shared: Session) -> None:
    result = shared.run("print('before')\n1/0", filename="mine.py")
    assert (result.success, result.error, result.text) == (False, "ZeroDivisionError: division by zero", "before\n")
    assert 'File "mine.py", line 2' in str(result)
    with pytest.raises(CodeError, match="ZeroDivisionError") as caught:
        shared.run("1/0", check=True)
    assert isinstance(caught.value.result, Result)
    assert shared.sh("exit_code() { return 3; }; exit_code").exit_code == 3
    with pytest.raises(CommandFailed, match="ended with 3"):
        shared.sh("exit_code", check=True)


def test_the_server_ends_a_run_at_its_time_limit_and_the_client_waits_for_that(shared: Session) -> None:
    result = shared.run("import time; time.sleep(600)", timeout=0.3)
    assert (result.cause, result.state_preserved) == ("timeout", True)
    with pytest.raises(RunTimeout, match=r"limit of 0.3 s"):
        shared.run("time.sleep(600)", timeout=0.3, check=True)
    with pytest.raises(RunTimeout):
        shared.sh("sleep 600", timeout=0.3, check=True)


def test_waiting_no_longer_lets_the_run_go_on(shared: Session) -> None:
    code = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\nfinished = True"
    with pytest.raises(WaitTimeout, match="The run goes on"):
        shared.run(code, wait=0.2)
    shared.files["go"].write_text("")
    assert shared.run("finished").text == "True\n"
    shared.files["go"].delete()
    with pytest.raises(WaitTimeout):
        shared.run("import time; time.sleep(600)", wait=0.2)
    assert shared.interrupt() == "sigint"


def test_events_come_while_the_cell_runs_and_the_last_is_the_result(shared: Session) -> None:
    events = list(shared.stream("for i in range(3): print(i)\ndisplay('d')\n5"))
    assert isinstance(events[0], Started)
    assert "".join(event.text for event in events if isinstance(event, Output)) == "0\n1\n2\n"
    assert isinstance(events[-1], Result)
    assert events[-1].text == "0\n1\n2\n'd'\n5\n"


def test_a_stream_may_ask(shared: Session) -> None:
    threads = []

    def answer(prompt: str, _secret: bool) -> str:  # noqa: FBT001 - the callback's signature
        threads.append(threading.get_ident())
        return prompt.upper()

    *_, result = shared.stream("print(input('a'), input('b'))", on_input=answer)
    assert isinstance(result, Result)
    assert result.text == "A B\n"
    assert threads == [threading.get_ident()] * 2


def test_leaving_a_stream_early_interrupts_its_cell(shared: Session) -> None:
    for event in shared.stream("import time\nprint('begun', flush=True)\ntime.sleep(600)"):
        if isinstance(event, Output):
            break
    assert shared.run("'next'").text == "'next'\n"


def test_callbacks_run_in_the_callers_thread(shared: Session) -> None:
    threads = set()
    texts = []

    def heard(output: Output) -> None:
        threads.add(threading.get_ident())
        texts.append(output.text)

    def answer(prompt: str, secret: bool) -> str:  # noqa: FBT001 - the callback's signature
        threads.add(threading.get_ident())
        return f"{prompt}{secret}"

    code = "from getpass import getpass\nprint(input('a '), getpass('b '))"
    assert shared.run(code, on_output=heard, on_input=answer).text == "a False b True\n"
    assert threads == {threading.get_ident()}
    assert "".join(texts) == "a False b True\n"
    with pytest.raises(LookupError, match="no answer"):
        shared.run("input()", on_input=_fail)
    assert "StdinNotImplementedError" in str(shared.run("input()").error)


def _fail(_prompt: str, _secret: bool) -> str:  # noqa: FBT001 - the callback's signature
    raise LookupError("no answer")


def test_large_results_arrive_and_large_requests_are_refused_with_figures(shared: Session) -> None:
    result = shared.run("print('y' * 8_000_000)\ndisplay({'text/plain': '', 'text/html': 'x' * 7_000_000}, raw=True)")
    assert len(result.text) >= 8_000_000
    assert len(str(result.displays[0].html)) == 7_000_000
    with pytest.raises(RequestRefused, match=r"has 17,000,\d{3} bytes, and the server takes 16,777,216") as caught:
        shared.run("#" * 17_000_000)
    assert caught.value.code == "frame_too_large"
    with pytest.raises(UnicodeEncodeError):
        shared.run("'\ud800'")
    with pytest.raises(UnicodeEncodeError):
        shared.run("input()", on_input=lambda _prompt, _secret: "\ud800")
    with pytest.raises(ValueError, match="not JSON compliant"):
        shared.run("1", timeout=float("nan"))
    assert shared.run("'still there'").success


def test_refusals_have_their_code(shared: Session) -> None:
    with pytest.raises(RequestRefused) as caught:
        shared.files.read("nothing")
    assert (caught.value.code, caught.value.retryable) == ("not_found", False)
    with pytest.raises(RequestRefused) as caught:
        shared.files.delete("nothing")
    assert caught.value.code == "not_found"
    first = shared.files.write("a/b.txt", "one", create=True)
    with pytest.raises(RequestRefused, match="has that name") as caught:
        shared.files.write("a/b.txt", "two", create=True)
    assert caught.value.code == "exists"
    shared.files.write("a/b.txt", "two", if_match=first.sha256)
    with pytest.raises(RequestRefused) as caught:
        shared.files.write("a/b.txt", "three", if_match=first.sha256)
    assert caught.value.code == "conflict"
    shared.files.rename("a", "c")
    shared.files.make_directory("d")
    assert [entry.path for entry in shared.files.list(recursive=True)] == ["c", "c/b.txt", "d"]
    shared.files.delete("c", recursive=True)
    shared.files.delete("d")


def test_a_session_that_is_refused_is_not_opened_with_other_options(client: Client) -> None:
    session = client.session("s", env={"PATH": "/nowhere"})
    for _ in range(2):
        with pytest.raises(RequestRefused, match="PATH"):
            session.run("1")
    assert session.info()["state"] == "absent"


def test_options_that_cannot_be_sent_are_refused_at_once(client: Client) -> None:
    for env in ({"A": "\ud800"}, {"A": float("nan")}):
        with pytest.raises(ValueError, match=r"surrogates|JSON"):
            client.session("s", env=env).run("1")  # type: ignore[arg-type]


def test_a_session_without_a_name_is_gone_after_with(client: Client) -> None:
    with client.session() as session:
        session.files.write("file", "x")
        assert len(client.sessions()) == 1
    assert client.sessions() == []


def test_questions_about_code(shared: Session) -> None:
    assert "import" in shared.complete("impo")
    assert "length" in shared.inspect("len").lower() or "number of items" in shared.inspect("len")
    shared.run("x = 1")
    shared.restart()
    assert not shared.run("x").success


def test_a_terminal(shared: Session) -> None:
    with shared.terminal(rows=30, cols=90) as terminal:
        terminal.resize(31, 91)
        terminal.write("stty size; exit 3\r")
        assert "31 91\r\n" in "".join(terminal)
        assert (terminal.exit_code, terminal.cause) == (3, "exited")
    with pytest.raises(Closed):
        terminal.write("x")


async def test_a_call_inside_a_running_loop_works(shared: Session) -> None:
    assert shared.run("1").text == "1\n"


def test_a_call_on_the_clients_own_loop_is_an_error_at_once(shared: Session) -> None:
    async def wrong() -> None:
        shared.run("1")

    with pytest.raises(RuntimeError, match="use AsyncClient"):
        loop_thread().call(lambda _: wrong())


def test_many_threads_use_one_session(shared: Session) -> None:
    results: dict[int, str] = {}

    def run(number: int) -> None:
        results[number] = shared.run(f"{number} * {number}").text

    threads = [threading.Thread(target=run, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert results == {number: f"{number * number}\n" for number in range(20)}


def test_ctrl_c_interrupts_the_cell_and_the_next_call_works(shared: Session) -> None:
    def press(_output: Output) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        shared.run("import time\nprint('begun', flush=True)\ntime.sleep(600)", on_output=press)
    assert shared.run("'next'").text == "'next'\n"

    def press_later() -> None:
        while "begun" not in [entry.path for entry in shared.files.list()]:
            pass
        press(Output("", ""))

    presser = threading.Thread(target=press_later)
    presser.start()
    with pytest.raises(KeyboardInterrupt):
        shared.run("open('begun', 'w').close(); time.sleep(600)")
    presser.join(PATIENCE)
    shared.files.delete("begun")
    assert shared.run("'next'").text == "'next'\n"


def test_closing_ends_the_wait_of_other_threads(server: ServerProcess, user: str) -> None:
    client = Client(server.url, user_id=user)
    session = client.session()
    begun, errors = threading.Event(), []

    def wait() -> None:
        try:
            session.run("import time\nprint('begun', flush=True)\ntime.sleep(60)", on_output=lambda _: begun.set())
        except Closed as exc:
            errors.append(exc)

    thread = threading.Thread(target=wait)
    thread.start()
    assert begun.wait(PATIENCE)
    client.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert len(errors) == 1
    with pytest.raises(Closed):
        session.run("1")
    client.close()


def program(server: ServerProcess, text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (sys.executable, "-W", "always::ResourceWarning", "-c", text, server.url),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_a_forked_child_connects_by_itself(server: ServerProcess) -> None:
    ran = program(
        server,
        """
import os, sys
from kernelbridge import Client
with Client(sys.argv[1], user_id="forks") as client, client.session("s") as session:
    session.run("x = 20")
    child = os.fork()
    if child == 0:
        assert session.run("x += 1; x").text == "21\\n"
        client.close()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    print(session.run("x * 2").text)
    session.close(delete_files=True)
""",
    )
    assert (ran.returncode, ran.stdout) == (0, "42\n\n"), ran.stderr


def test_a_process_that_stood_still_keeps_its_connection(wire: Wire, user: str) -> None:
    """A suspended laptop: it was silent for longer than it would let the server be."""
    text = """
import sys
from kernelbridge import Client
with Client(sys.argv[1], user_id=sys.argv[2], heartbeat=1.0) as client:
    print(client.sessions(), flush=True)
    for line in sys.stdin:
        print(client.sessions(), flush=True)
"""
    process = subprocess.Popen(
        (sys.executable, "-c", text, wire.url, user), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "[]\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(2)  # the fault itself
        process.send_signal(signal.SIGCONT)
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stdout.readline() == "[]\n"
    assert wire.connections == 1


def test_a_client_that_is_never_closed_warns_once_and_does_not_hang(server: ServerProcess) -> None:
    text = """
import sys
from kernelbridge import Client
client = Client(sys.argv[1], user_id="forgets")
print(client.session("s").files.write("a", "b").size, client.session("s").files.list()[0].path)
"""
    ran = program(server, text)
    assert (ran.returncode, ran.stdout) == (0, "1 a\n"), ran.stderr
    assert ran.stderr.count("was not closed") == 1, ran.stderr
    assert "Traceback" not in ran.stderr
    ran = program(server, text + "del client\nimport gc; gc.collect()\n")
    assert ran.returncode == 0
    assert ran.stderr.count("was not closed") == 1, ran.stderr


def test_nothing_is_loaded_or_started_before_the_first_call(server: ServerProcess) -> None:
    ran = program(
        server,
        "import sys, threading; from kernelbridge import Client\n"
        "client = Client(sys.argv[1]); client.session('s'); print(threading.active_count())",
    )
    assert (ran.stdout, ran.stderr) == ("1\n", "")


def test_an_asynchronous_client_in_two_runs_of_a_loop_connects_again(server: ServerProcess) -> None:
    ran = program(
        server,
        """
import asyncio, sys
from kernelbridge import AsyncClient
client = AsyncClient(sys.argv[1], user_id="loops")
session = client.session("s")
async def run(code): return (await session.run(code)).text
print(asyncio.run(run("x = 41")), asyncio.run(run("x + 1")))
async def end():
    await session.close(delete_files=True)
    await client.close()
asyncio.run(end())
""",
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, " 42\n\n", "")
