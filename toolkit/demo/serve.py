"""The server: both languages of the page on one port, to this machine only unless told otherwise, with nothing from elsewhere."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, RedirectResponse, Response
from starlette.middleware.trustedhost import TrustedHostMiddleware

from toolkit.demo.house import House
from toolkit.demo.page import looks, page
from toolkit.demo.running import safety_card
from toolkit.demo.words import LANGUAGES
from toolkit.errors import UserError

LOCAL = ("127.0.0.1", "localhost", "::1")
READERS = 256  # people whose requests may wait at once; Gradio's own 40 would hold up everybody's other clicks
LARGEST = 8 * 2**20  # bytes of a request: a book fits, what does not is refused unread
# The browser itself forbids whatever would leave this machine, should an escape ever fail. Gradio's templates need eval.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)


REPORT_POLICY = "sandbox allow-popups; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
ICON = Path(__file__).parent / "icon.svg"


class Guard:
    """Headers on every answer, and no request larger than `LARGEST`. Plain ASGI, so that streams stay streams."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        size = dict(scope["headers"]).get(b"content-length", b"0")
        if not size.isdigit() or int(size) > LARGEST:
            await send({"type": "http.response.start", "status": 413, "headers": [(b"content-type", b"text/plain")]})
            return await send({"type": "http.response.body", "body": b"too large"})

        async def with_headers(message):
            if message["type"] == "http.response.start":
                headers = [
                    *message.get("headers", []),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
                if not any(name.lower() == b"content-security-policy" for name, _ in headers):
                    headers.append((b"content-security-policy", POLICY.encode()))
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, with_headers)


class Pages:
    """Makes a language's page when it is first asked for: the other one costs nothing at the start."""

    def __init__(self, app, house: House, top: FastAPI):
        self.app, self.house, self.top, self.made, self.lock = app, house, top, set(), asyncio.Lock()

    async def __call__(self, scope, receive, send):
        name = scope.get("path", "/").split("/")[1] if scope["type"] == "http" else ""
        if name in LANGUAGES and name not in self.made:
            async with self.lock:
                if name not in self.made:
                    await self._make(name)
                    self.made.add(name)
        await self.app(scope, receive, send)

    async def _make(self, name: str) -> None:
        """What `gr.mount_gradio_app` leaves to the start of the server, which is over, is done here."""
        blocks = await asyncio.to_thread(page, self.house, name)
        blocks.max_threads = READERS
        blocks.queue(default_concurrency_limit=None, api_open=False)
        gr.mount_gradio_app(self.top, blocks, f"/{name}", ssr_mode=False, max_file_size=LARGEST, **looks())
        mounted = self.top.router.routes[-1].app
        await self.top.state.stack.enter_async_context(mounted.router.lifespan_context(mounted))
        blocks.run_startup_events()
        await blocks.run_extra_startup_events()


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI):
    async with contextlib.AsyncExitStack() as app.state.stack:
        yield


def application(house: House, language: str = "", hosts: list[str] | None = None) -> FastAPI:
    """The whole server as an ASGI app.

    Args:
        language: the one shown at /; by default the browser's.
        hosts: names this server answers to; None: any.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=_lifespan)
    app.add_middleware(Pages, house=house, top=app)
    app.add_middleware(Guard)
    if hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)

    @app.get("/")
    def front(request: Request):
        asked = request.headers.get("accept-language", "").lower().split(",")[0]
        return RedirectResponse(f"/{language or ('zh' if asked.startswith('zh') else 'en')}/")

    @app.get("/report/{name}")
    def report(name: str):
        return _shut_in(house, name, lambda folder: folder / "report" / "report.html")

    @app.get("/safety/{name}")
    def safety(name: str):
        return _shut_in(house, name, lambda folder: safety_card(house, folder))

    @app.get("/favicon.ico")
    def icon():
        return FileResponse(ICON, media_type="image/svg+xml")

    @app.get("/manifest.json")
    def manifest():
        return {"name": "Fablesmith", "icons": []}

    return app


def _shut_in(house: House, name: str, where: Callable[[Path], Path]) -> Response:
    """A page of a run, in a sandbox: whatever a text in it may hold, nothing runs and nothing is fetched."""
    try:
        path = where(house.run(name))
    except UserError:
        return Response("there is no such run here", 404)
    if not path.is_file():
        return Response("this run has no such page yet", 404)
    return FileResponse(path, media_type="text/html", headers={"content-security-policy": REPORT_POLICY})


def serve(house: House, host: str = "127.0.0.1", port: int | None = None, language: str = "", ready=None) -> None:
    """Serve until interrupted. `ready` is called with the address when the page can be opened.

    Raises UserError when the port is taken, or `host` is none of this machine's.
    """
    found = _bind(host, port)
    app = application(house, language, [*LOCAL, "[::1]"] if host in LOCAL else None)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=2))
    name = f"[{host}]" if ":" in host else host
    if ready:
        ready(f"http://{name}:{found.getsockname()[1]}/")
    try:
        server.run(sockets=[found])
    except KeyboardInterrupt:
        pass  # Ctrl-C is how one stops it
    finally:
        house.desk.close()


def _bind(host: str, port: int | None) -> socket.socket:
    """A socket on the port asked for, or on the first free one from 7860."""
    error = None
    for one in [port] if port is not None else range(7860, 7900):
        room = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        room.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            room.bind((host, one))
            return room
        except (OSError, OverflowError) as found:
            room.close()
            error = found
    raise UserError(
        f"cannot serve on {host}:{port or '7860 to 7899'}: {getattr(error, 'strerror', error)}",
        "name another --port or --host",
    )
