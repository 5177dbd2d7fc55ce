"""`demo`: the page in a browser."""

import json
import os
import sys
from pathlib import Path

from toolkit.errors import UserError

EXAMPLES = {"demo": "fablesmith demo\n  fablesmith demo runs/quickstart --lang zh"}


def add_verbs(verb) -> None:
    p = verb("demo", "open the page: write, compare, judge, browse runs, train")
    p.add_argument(
        "what", nargs="?", default="embedded", help="a run folder, a .gguf file, or another model (default: embedded)"
    )
    p.add_argument("--port", type=int, help="port (default: the first free one from 7860)")
    p.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; other than the default, others can use the page (default: 127.0.0.1)",
    )
    p.add_argument("--lang", choices=("en", "zh"), default="", help="language shown first (default: the browser's)")
    p.add_argument(
        "--votes",
        type=Path,
        default=Path("votes.jsonl"),
        help="where votes go, as for `fablesmith vote` (default: votes.jsonl)",
    )
    p.add_argument("--json", action="store_true", help="the address as one JSON line, once the page is there")


def demo(args) -> None:
    from toolkit.engines.load import check_engine

    if args.port is not None and not 0 <= args.port <= 65535:
        raise UserError(f"--port {args.port} is out of range: 0 to 65535")
    what, runs = args.what, Path("runs")
    if (Path(what) / "recipe.json").is_file():
        from toolkit.models.resolve import exported_gguf

        runs = Path(what).parent if Path(what).name not in ("", "..") else Path(what).resolve().parent
        if exported_gguf(Path(what)) is None:
            print(f"{what} has exported no model yet: the page opens with the embedded one", file=sys.stderr)
            what = "embedded"
    check_engine(what)
    os.environ["HF_HUB_OFFLINE"] = "1"  # the page never fetches anything
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from toolkit.demo.house import House
    from toolkit.demo.serve import LOCAL, serve

    def ready(address: str) -> None:
        said = json.dumps({"address": address}) if args.json else f"Fablesmith is at {address} (Ctrl-C stops it)"
        print(said, flush=True)
        if args.host not in LOCAL:
            print("note: anyone who reaches this address can use the page; there is no password", file=sys.stderr)

    serve(House(what, runs, args.votes, local=args.host in LOCAL), args.host, args.port, args.lang, ready)


VERBS = {"demo": demo}
