"""Where the model goes next: `export`, for Ollama, KoboldCpp, llama.cpp's server, LM Studio, or the hub."""

import json
from pathlib import Path

from toolkit.errors import UserError

EXAMPLES = {
    "export": "fablesmith export runs/quickstart --for ollama\n"
    "  fablesmith export runs/quickstart --for koboldcpp --out ~/kobold/quickstart\n"
    "  fablesmith export runs/quickstart --push ann/night-stories"
}


def add_verbs(verb) -> None:
    p = verb("export", "make a run's model ready for another program, with its model card")
    p.add_argument("run", type=Path, help="a run's folder, its stage export done")
    p.add_argument("--for", dest="program", choices=("ollama", "koboldcpp", "llama-server", "lmstudio"), help="the program that is to run it")  # fmt: skip
    p.add_argument("--out", type=Path, help="folder (default: RUN/for-PROGRAM)")
    p.add_argument("--push", default="", metavar="OWNER/NAME", help="upload the folder to this model of the Hugging Face hub, made private; nothing is uploaded without this")  # fmt: skip
    p.add_argument("--public", action="store_true", help="with --push: everybody may see and load it")
    p.add_argument("--json", action="store_true", help="files and the next command as one JSON document")


def _export(args) -> None:
    import shutil

    from toolkit.card import CARD, write_card
    from toolkit.export.handoff import hand_out
    from toolkit.export.hub import check_repo, push
    from toolkit.progress import say

    if not (args.program or args.push):
        raise UserError("export needs a program or a place", "--for ollama, koboldcpp, llama-server or lmstudio, or --push OWNER/NAME")  # fmt: skip
    if args.public and not args.push:
        raise UserError("--public says who may see what --push uploads", "add --push OWNER/NAME")
    if args.push:
        check_repo(args.push)
    out = args.out or args.run / f"for-{args.program or 'hub'}"
    files, then, notes = hand_out(args.run, args.program or "llama-server", out)
    write_card(args.run)
    shutil.copyfile(args.run / CARD, out / "README.md")
    files.append(out / "README.md")
    for note in notes:
        say(f"note: {note}")
    found = {"files": [str(f) for f in files], "next": then, "notes": notes}
    if args.push:
        found["hub"] = push(files, args.push, args.public)
    if args.json:
        print(json.dumps(found, ensure_ascii=False))
        return
    print("\n".join(found["files"]))
    print(f"\nnext: {then}" if args.program else f"\n{found['hub']}" + ("" if args.public else " (private)"))


VERBS = {"export": _export}
