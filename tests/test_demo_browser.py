"""The page as people use it: a real browser, the real embedded model. Screenshots are left in build/screenshots."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHOTS = ROOT / "build" / "screenshots"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIETLY = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
PREMISE = "A lighthouse keeper learns what the light keeps away."

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e .[test]")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt install chromium"),
]


class Server:
    """`fablesmith demo` in a folder of its own, on a free port."""

    def __init__(self, folder: Path, *args: str):
        self.folder = folder
        environment = os.environ | {"FABLESMITH_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "toolkit", "demo", "--port", "0", *args]
        self.log = (folder / "server.log").open("w+")
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        said = self.process.stdout.readline()
        self.address = re.search(r"http://\S+", said).group()

    def close(self) -> str:
        """Stop it; returns what it wrote to stderr."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(timeout=30)
        self.log.seek(0)
        return self.log.read()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("demo"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=QUIETLY)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, server, request):
    """Open the page as one more person; afterwards: it asked nobody but its own server, and no script failed."""
    visitors, asked, failed = [], [], []

    def open_page(language="en", **context):
        visitor = chromium.new_context(viewport={"width": 1280, "height": 860}, **context)
        page = visitor.new_page()
        page.on("request", lambda r: asked.append(r.url))
        page.on("pageerror", lambda e: failed.append(str(e)))
        page.goto(f"{server.address}{language}/")
        page.wait_for_selector("#premise textarea")
        visitors.append((visitor, page))
        return page

    yield open_page
    SHOTS.mkdir(parents=True, exist_ok=True)
    for i, (visitor, page) in enumerate(visitors):
        page.screenshot(path=SHOTS / f"{request.node.name}-{i}.png", full_page=True)
        visitor.close()
    assert {url for url in asked if not url.startswith((server.address, "blob:", "data:"))} == set()
    assert failed == []


def write(page, premise=PREMISE, n=1, size="A few lines"):
    page.fill("#premise textarea", premise)
    page.get_by_label(size, exact=True).check(force=True)
    page.get_by_label(str(n), exact=True).check(force=True)
    page.click("button#write")


def drafts(page) -> list[str]:
    return [t.strip() for t in page.locator("#drafts .story").all_inner_texts()]


def wait_for(told, seconds=60):
    end = time.monotonic() + seconds
    while not (found := told()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
    return found


def test_drafts_stream_side_by_side_and_one_is_worked_on(visit):
    page = visit()
    write(page, n=2)
    page.wait_for_function("document.querySelectorAll('#drafts .caret').length == 2")
    early = wait_for(lambda: [t for t in drafts(page) if t])
    page.wait_for_selector("#drafts .take")
    whole = drafts(page)
    assert len(whole) == 2
    assert whole[0] != whole[1]
    assert len("".join(whole)) > len("".join(early)), "it appeared all at once"
    page.click("#drafts .take >> nth=1")
    story = page.locator("#story textarea")
    wait_for(lambda: story.input_value() == whole[1])
    page.click("button#do-continue")
    wait_for(lambda: page.locator("#edit-state .status").inner_text() == "Done")
    assert story.input_value().startswith(whole[1] + "\n\n")
    page.click("button#undo")
    wait_for(lambda: story.input_value() == whole[1])
    with page.expect_download() as saved:
        page.click("button#save")
    text = Path(saved.value.path()).read_text(encoding="utf-8")
    assert text.startswith(f"> {PREMISE}")
