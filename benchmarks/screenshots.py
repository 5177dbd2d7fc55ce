"""Pictures of every tab of the page for the docs: light, dark and a phone's width, and one in Chinese.

    python benchmarks/screenshots.py runs/quickstart [--out docs/screenshots]

Whatever is on them was really written and judged by the embedded model while they were taken; the run named supplies the
aligned model and the Runs tab. Files have 128 colours, so that the docs stay small.
"""

import argparse
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PREMISE = "A lighthouse keeper learns what the light keeps away."
TEXT = (
    "Mara kept the lighthouse alone after her brother drowned. Each night she lit the lamp and heard something circle the "
    "rocks. One storm the oil ran out, and a ship came in on the dark water. She burned her brother's letters, one by one, "
    "to keep the flame alive. By the last letter she read that he had never wanted to go to sea; she had sent him. In the "
    "morning the ship was safe, and the thing on the rocks was gone."
)
LOOKS = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light", "is_mobile": True, "has_touch": True},
}
LARGEST = 120_000  # bytes of a picture
LONG = 240_000  # milliseconds for a model's answer


def keep(page, path: Path, tall: int = 1500) -> None:
    """The page from its top down to `tall` pixels, as a small PNG."""
    from PIL import Image

    picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    picture = picture.crop((0, 0, picture.width, min(picture.height, tall)))
    for colours in (128, 64, 32):
        room = io.BytesIO()
        picture.quantize(colours).save(room, "PNG", optimize=True)
        if room.tell() <= LARGEST:
            break
    path.write_bytes(room.getvalue())
    print(f"{path} {room.tell() / 1000:.0f} kB", flush=True)


def show(page, tab: int) -> None:
    """Open the tab of that number, also where a narrow screen hides it in a menu."""
    page.evaluate("(i) => { const tabs = document.querySelectorAll('[role=tab]'); tabs[i]?.click(); }", tab)
    page.wait_for_timeout(600)


def fill(page) -> None:
    """Make something of every tab that a model fills; the page keeps it while its looks change."""
    page.fill("#premise textarea", PREMISE)
    page.click("button#write")
    page.wait_for_selector("#drafts .take", timeout=LONG)
    page.click("#drafts .take >> nth=0")
    show(page, 1)
    page.click("button#compare")
    page.wait_for_selector("button#vote-first:visible", timeout=LONG)
    show(page, 2)
    page.get_by_label("Ratings", exact=True).check(force=True)  # the embedded model cannot quote
    page.fill("#judge-text textarea", TEXT)
    page.click("button#judge")
    page.wait_for_selector("#judge-state .status:has-text('Done')", timeout=LONG)
    show(page, 5)
    page.click("#greet-examples button >> nth=0")
    page.wait_for_function("document.querySelector('#greet-request textarea').value")
    page.click("button#greet")
    page.wait_for_selector("#greetings .copy", timeout=LONG)
    show(page, 4)
    page.click("button#check")
    page.wait_for_selector("#train-state .note", timeout=LONG)


def main() -> None:
    from playwright.sync_api import sync_playwright

    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("run", type=Path)
    options.add_argument("--out", type=Path, default=ROOT / "docs" / "screenshots")
    args = options.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        environment = os.environ | {"FABLESMITH_CACHE": folder, "PYTHONPATH": str(ROOT)}
        command = [
            sys.executable,
            "-m",
            "toolkit",
            "demo",
            f"{args.run.parent.name}/{args.run.name}",
            "--port",
            "0",
            "--votes",
            f"{folder}/votes.jsonl",
        ]
        home = args.run.resolve().parents[1]  # so that the pictures name no folder of this machine
        server = subprocess.Popen(command, cwd=home, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            address = re.search(r"http://\S+", server.stdout.readline()).group()
            browser = p.chromium.launch(executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"])
            page = browser.new_context(**LOOKS["light"]).new_page()
            page.goto(f"{address}en/")
            page.wait_for_selector("#premise textarea")
            fill(page)
            for look, settings in LOOKS.items():
                page.set_viewport_size(settings["viewport"])
                page.emulate_media(color_scheme=settings["color_scheme"])
                page.evaluate("(on) => document.body.classList.toggle('dark', on)", look == "dark")
                for i, tab in enumerate(("write", "compare", "judge", "runs", "train", "greetings")):
                    show(page, i)
                    page.wait_for_timeout(1500 if tab in ("runs", "train") else 300)
                    keep(page, args.out / f"{tab}-{look}.png")
            page = browser.new_context(**LOOKS["light"]).new_page()
            page.goto(f"{address}zh/")
            page.wait_for_selector("#premise textarea")
            page.wait_for_timeout(800)
            keep(page, args.out / "write-zh.png")
            browser.close()
        finally:
            server.send_signal(signal.SIGINT)
            server.wait()


if __name__ == "__main__":
    main()
