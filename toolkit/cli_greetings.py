"""Greetings on the command line: `write --as greeting`, and `debates`, what the agents said of each answer."""

import json
import sys
from pathlib import Path

from toolkit.errors import UserError

EXAMPLES = {
    "debates": "fablesmith debates runs/greetings-small --request en-a-014\n"
    "  fablesmith debates runs/greetings-small --only overturned",
}
KINDS = ("all", "accepted", "rejected", "overturned", "none")


def add_verbs(verb) -> None:
    p = verb("debates", "browse what the agents of a greetings run said of each answer, and why")
    p.add_argument("run", type=Path, help="a run's folder, finished or not")
    p.add_argument("--request", default="", metavar="ID", help="only the answers to this request")
    p.add_argument(
        "--only", choices=KINDS, default="all", help="verdicts of one kind; none: without a verdict (default: all)"
    )
    p.add_argument("-n", type=int, default=5, help="how many at most; 0 is all (default: 5)")
    p.add_argument("--json", action="store_true", help="one JSON line a record")


def write(request: str, n: int, angles: bool, as_json: bool, settings: dict) -> None:
    """Greetings on stdout; what is wrong with their form on stderr."""
    from toolkit.api import greet

    if angles:
        raise UserError("--angles is for plots", "ask for several greetings with -n, or raise --temperature")
    settings = {k: v for k, v in settings.items() if k != "angles"}
    for i, (text, broken) in enumerate(greet(request, n, **settings)):
        if as_json:
            row = {"request": request.strip(), "text": text, "n": i, "seed": settings["seed"], "broken": broken}
            print(json.dumps(row, ensure_ascii=False))
            continue
        if i:
            print()
        heading(i, n)
        print(text)
        if broken:
            sys.stdout.flush()
            print(f"note: form: {', '.join(broken)}", file=sys.stderr)
            if settings["model"] == "embedded" and any("\u4e00" <= c <= "\u9fff" for c in request):
                print("note: the embedded model hardly knows Chinese; --model qwen3-4b does", file=sys.stderr)


def heading(i: int, n: int) -> None:
    """The line above one of several texts."""
    if n > 1:
        print(f"── {i + 1} of {n} " + "─" * 40)


def _debates(args) -> None:
    from toolkit.feedback.verdicts import read_records, show_record
    from toolkit.records import dump

    if args.n < 0:
        raise UserError(f"-n {args.n} is out of range: at least 0")
    found = [args.run / f"rejection{end}" / "records.jsonl" for end in ("", ".partial")]
    path = next((p for p in found if p.is_file()), None)
    if path is None:
        raise UserError(f"{args.run} holds no agents' records", "name the folder of a run of a greetings recipe")
    rows = read_records(path)
    if args.request:
        known = {r.request_id for r in rows}
        if args.request not in known:
            raise UserError(
                f"no answer to {args.request!r} in {path}", f"there are, for example, {', '.join(sorted(known)[:3])}"
            )
        rows = [r for r in rows if r.request_id == args.request]
    rows = [r for r in rows if _is(args.only, r)]
    for record in rows[: args.n or None]:
        print(dump(record) if args.json else show_record(record) + "\n")
    if args.n and len(rows) > args.n:
        print(f"{len(rows) - args.n} more; -n 0 shows all", file=sys.stderr)


def _is(kind: str, record) -> bool:
    wanted = {"accepted": record.final == 1, "rejected": record.final == 0, "none": record.final is None}
    return kind == "all" or (record.overturned if kind == "overturned" else wanted[kind])


VERBS = {"debates": _debates}
