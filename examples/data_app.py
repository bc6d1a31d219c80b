"""A page with a form: upload a CSV file, see a plot and the figures of its columns.

Each upload is read in a session of its own, so a hostile file reaches nobody else's data. Start a server (`kernelbridge
serve`), then open http://localhost:8080 after:

    python examples/data_app.py 8080
"""

import base64
import html
import os
import sys
from collections.abc import AsyncIterator

from aiohttp import web

from kernelbridge import AsyncClient, KernelBridgeError

SERVER = os.environ.get("KERNELBRIDGE_URL", "ws://localhost:8001")
LARGEST = 20 << 20
"""Bytes that an upload may have."""
CLIENT = web.AppKey("client", AsyncClient)
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Plot a CSV file</title>
<form method="post" action="/plot" enctype="multipart/form-data">
<label>CSV file <input type="file" name="file" accept=".csv" required></label> <button>Plot</button></form>
"""
CODE = """
import pandas as pd, matplotlib.pyplot as plt
data = pd.read_csv("data.csv")
data.select_dtypes("number").plot(subplots=True, figsize=(8, 5))
plt.tight_layout()
plt.show()
print(data.describe().round(2).to_string())
"""


async def form(_request: web.Request) -> web.Response:
    """Show the form."""
    return web.Response(text=PAGE, content_type="text/html")


async def plot(request: web.Request) -> web.Response:
    """Run the code on the uploaded file, and show what comes of it."""
    upload = (await request.post()).get("file")
    if not isinstance(upload, web.FileField):
        raise web.HTTPBadRequest(text="There is no file in the form.")
    try:
        async with request.app[CLIENT].session(egress="none") as session:
            await session.files.write("data.csv", upload.file)
            result = await session.run(CODE, timeout=30)
    except KernelBridgeError as exc:
        raise web.HTTPServiceUnavailable(text=f"The file could not be read now: {exc.message}.") from exc
    # All of this comes from the upload: text is escaped, and a picture in <img> runs nothing.
    pictures = [base64.b64encode(image.png).decode() for image in result.images if image.png]
    shown = [f'<img src="data:image/png;base64,{picture}" alt="The columns of the file">' for picture in pictures]
    text = result.stdout if result.success else f"The file cannot be plotted. {result.error}"
    page = f"{PAGE}{''.join(shown)}<pre>{html.escape(text)}</pre>"
    return web.Response(text=page, content_type="text/html", status=200 if result.success else 422)


async def connected(app: web.Application) -> AsyncIterator[None]:
    """Keep one connection for all requests, as long as the application runs."""
    async with AsyncClient(SERVER, token=os.environ.get("KERNELBRIDGE_TOKEN")) as client:
        app[CLIENT] = client
        yield


def make_app() -> web.Application:
    """Return the application."""
    app = web.Application(client_max_size=LARGEST)
    app.cleanup_ctx.append(connected)
    app.add_routes([web.get("/", form), web.post("/plot", plot)])
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=int(sys.argv[1]))
