"""How soon the page is there, beside an empty Gradio page; and how soon the first word comes after a click.

    python benchmarks/demo_start.py [--times 5]

Each start is a new process, the two kinds in turn. `served`: from the process's start to the page's first byte answered;
`shown`: until a browser shows the page (the browser itself runs already). The first word is measured on the embedded
model, already open, from the click on Write to the first letters on the page, two drafts side by side.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EMPTY = """
import gradio as gr
with gr.Blocks(analytics_enabled=False) as blocks:
    gr.Textbox(label="nothing", elem_id="premise")
blocks.launch(server_name="127.0.0.1", server_port={port}, quiet=True)
"""
PREMISES = (
    "A lighthouse keeper learns what the light keeps away.",
    "A ferryman refuses one passenger.",
    "A bell rings twice in a town without a church.",
    "A clockmaker finds a watch that runs on regrets.",
    "Two sisters inherit one house and two keys.",
)


def free_port() -> int:
    with socket.socket() as room:
        room.bind(("127.0.0.1", 0))
        return room.getsockname()[1]


def start(kind: str, folder: Path, port: int) -> tuple[subprocess.Popen, str]:
    """The process, and the address of its page."""
    environment = os.environ | {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "FABLESMITH_CACHE": str(folder / "cache"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", EMPTY.format(port=port)]
    if kind == "demo":
        command = [sys.executable, "-m", "toolkit", "demo", "--port", str(port)]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return process, f"http://127.0.0.1:{port}/" + ("en/" if kind == "demo" else "")


def once(kind: str, folder: Path, browser) -> dict[str, float]:
    port, began = free_port(), time.perf_counter()
    process, address = start(kind, folder, port)
    try:
        while True:
            try:
                urllib.request.urlopen(address, timeout=30).read()
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.01)
        served = time.perf_counter() - began
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("#premise textarea, #premise input")
        shown = time.perf_counter() - began
        page.close()
        return {"served": served, "shown": shown}
    finally:
        process.kill()
        process.wait()


def first_words(folder: Path, browser, times: int) -> list[float]:
    """Seconds from the click to the first letters, with the model open."""
    process, address = start("demo", folder, free_port())
    try:
        page = browser.new_page()
        while True:
            try:
                page.goto(address)
                break
            except Exception:
                time.sleep(0.2)
        page.wait_for_selector("#premise textarea")
        seconds = []
        for i in range(times + 1):  # the first opens the model
            page.fill("#premise textarea", PREMISES[i % len(PREMISES)])
            page.evaluate("document.querySelector('#drafts').dataset.old = '1'")
            seconds.append(
                page.evaluate(
                    """() => new Promise((done) => {
                      const began = performance.now(), drafts = document.querySelector('#drafts');
                      const look = new MutationObserver(() => {
                        const story = drafts.querySelector('.card .story');
                        if (story && drafts.querySelector('.caret') && story.innerText.trim()) {
                          look.disconnect(); done((performance.now() - began) / 1000);
                        }
                      });
                      look.observe(drafts, {childList: true, subtree: true, characterData: true});
                      document.querySelector('button#write').click();
                    })"""
                )
            )
            page.click("button#write-stop")
            page.wait_for_function("!document.querySelector('button#write').disabled")
        return seconds[1:]
    finally:
        process.kill()
        process.wait()


def main() -> None:
    from playwright.sync_api import sync_playwright

    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--times", type=int, default=5)
    times = options.parse_args().times
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    found: dict[str, list] = {"empty": [], "demo": []}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"])
        for kind in ("empty", "demo"):  # once each for the disk's sake, not counted
            once(kind, Path(folder), browser)
        for _ in range(times):
            for kind, rows in found.items():
                rows.append(once(kind, Path(folder), browser))
        words = first_words(Path(folder), browser, times)
        browser.close()
    middle = {k: {w: statistics.median(r[w] for r in rows) for w in ("served", "shown")} for k, rows in found.items()}
    for what in ("served", "shown"):
        empty, demo = middle["empty"][what], middle["demo"][what]
        print(f"{what:<7} empty page {empty:.2f} s, demo {demo:.2f} s, ratio {demo / empty:.2f}")
    print(
        f"first word after the click: median {statistics.median(words):.2f} s, longest {max(words):.2f} s of {len(words)}"
    )
    print(json.dumps({"starts": found, "first_word": words}))


if __name__ == "__main__":
    main()
