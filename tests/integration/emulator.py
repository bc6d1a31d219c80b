"""A person at a terminal: frames drawn by a real terminal emulator."""

from collections.abc import Callable

import pyte

from tests.integration.conftest import Client, Frame

UP = "\x1b[A"


class Screen(pyte.Screen):
    """Remembers what an emulator answers to the questions that programs ask it."""

    def __init__(self, columns: int, lines: int) -> None:
        self.replies: list[str] = []
        super().__init__(columns, lines)

    def write_process_input(self, data: str) -> None:
        self.replies.append(data)

    def select_graphic_rendition(self, *attributes: int, private: bool = False) -> None:
        if not private:  # how programs ask for more detailed keys
            super().select_graphic_rendition(*attributes)


class Person:
    """One connection's view of one terminal."""

    def __init__(self, client: Client, opened: Frame, session: str) -> None:
        self.client = client
        self.opened = opened
        self.id = opened["terminalId"]
        self.session = session
        self.screen = Screen(opened["cols"], opened["rows"])
        self.stream = pyte.Stream(self.screen)
        self.draws = True
        """False to leave out the drawing, which takes a second for each megabyte."""
        self.frames: list[Frame] = []
        """All that came for this terminal, but for the first."""

    @classmethod
    async def open(
        cls, client: Client, *, session: str = "s", rows: int = 24, cols: int = 80, **more: object
    ) -> "Person":
        opened = await client.ask(type="open_terminal", sessionId=session, rows=rows, cols=cols, **more)
        assert opened["type"] == "terminal_opened", opened
        return cls(client, opened, session)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display)

    @property
    def data(self) -> str:
        """All output that came."""
        return "".join(frame["data"] for frame in self.frames if frame["type"] == "terminal_data")

    async def type(self, data: str) -> None:
        await self.send("terminal_input", data=data)

    async def send(self, kind: str, **fields: object) -> None:
        await self.client.send(type=kind, sessionId=self.session, terminalId=self.id, **fields)

    async def resize(self, rows: int, cols: int) -> None:
        self.screen.resize(rows, cols)
        await self.send("terminal_resize", rows=rows, cols=cols)

    async def next(self) -> Frame:
        """Take the next frame, which must be of this terminal, and draw it."""
        try:
            frame = await self.client.receive()
        except TimeoutError:
            raise AssertionError(f"nothing more came; the screen shows:\n{self.text}") from None
        assert frame.get("terminalId") == self.id, frame
        self.frames.append(frame)
        if frame["type"] == "terminal_data" and self.draws:
            self.stream.feed(frame["data"])
            for reply in self.screen.replies:
                await self.type(reply)
            self.screen.replies.clear()
        return frame

    async def until(self, shows: str | Callable[[str], bool]) -> str:
        """Wait until the screen shows a text, or what is looked for; give the screen."""
        seen = (lambda text: shows in text) if isinstance(shows, str) else shows
        while not seen(self.text):
            frame = await self.next()
            assert frame["type"] == "terminal_data", (frame, self.text)
        return self.text

    async def until_sent(self, text: str) -> None:
        """Wait until all the output has had a text in it."""
        seen = ""
        while text not in seen:
            frame = await self.next()
            assert frame["type"] == "terminal_data", (frame, seen[-1000:])
            seen = (seen + frame["data"])[-len(text) - len(frame["data"]) :]

    async def prompt(self) -> None:
        """Wait until the shell waits for a command."""
        await self.until(lambda text: text.rstrip("\n").endswith("$"))

    async def until_closed(self) -> Frame:
        while (frame := await self.next())["type"] != "terminal_closed":
            pass
        return frame
