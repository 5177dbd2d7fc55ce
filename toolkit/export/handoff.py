"""An exported model, made ready for another program: Ollama, KoboldCpp, llama.cpp's server, LM Studio.

Each gets the exact chat template, the tokens that end an answer, a context, and the sampling the run was measured with; the
programs' own defaults differ. What is read of each program is named at its function; none of them was run here.
"""

import json
import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from toolkit.engines.base import Sampling
from toolkit.errors import UserError
from toolkit.export.chat import GgufChat, go_template, read_chat
from toolkit.hardware import require_disk, require_writable
from toolkit.models.catalogue import catalogue_file
from toolkit.models.resolve import exported_gguf

CONTEXT = 8192  # tokens, where the model was made for as many: what fits beside most models


@dataclass(frozen=True)
class Handout:
    """What a run exported. `model` is the GGUF to load, `adapter` goes on top of it where the training is not in it."""

    name: str
    model: Path
    adapter: Path | None
    chat: GgufChat
    sampling: Sampling

    @property
    def context(self) -> int:
        return min(CONTEXT, self.chat.context)

    @property
    def own(self) -> list[Path]:
        """The files that this run made: what moves along and may be given away."""
        return [self.adapter] if self.adapter else [self.model]


def read_handout(run: Path) -> Handout:
    """What the run hands out. Raises UserError when it has exported nothing, or a file of it is gone."""
    model = exported_gguf(run)
    if model is None:
        raise UserError(f"{run} has exported no model yet", "run its recipe up to the stage export, then again")
    card = json.loads((run / "export" / "export.json").read_text(encoding="utf-8"))
    adapter = None if card.get("merged", True) else run / "export" / card["adapter"]
    for file in filter(None, (model, adapter)):
        if not file.is_file():
            raise UserError(
                f"no GGUF file at {file}, where {run} exported to", "run its recipe again: it makes what is gone"
            )
    recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    return Handout(
        recipe["name"], model.absolute(), adapter and adapter.absolute(), read_chat(model), _sampling(recipe)
    )


def _sampling(recipe: dict) -> Sampling:
    """As the run's own evaluation draws; the longest answer is the longest it was trained and measured with."""
    if recipe["task"] != "plot":
        longest = recipe["grpo" if recipe["task"] == "greeting" else "sft"]["max_tokens"]
        return Sampling(recipe["evaluate"]["temperature"], min_p=0.05, max_tokens=longest)
    c = recipe["candidates"]
    return Sampling(
        recipe["evaluate"]["temperature"],
        min_p=c["min_p"],
        repeat_penalty=c["repeat_penalty"],
        max_tokens=c["max_tokens"],
    )


def hand_out(run: Path, program: str, out: Path) -> tuple[list[Path], str, list[str]]:
    """Write what `program` needs into the folder `out`, with the run's own files beside it (linked where the disk can).

    Args:
        program: one of PROGRAMS.

    Returns:
        (files, the commands that come next, what the user should know).

    Raises:
        UserError: nothing exported, a full disk, or a program that cannot take what the run exported.
    """
    handout = read_handout(run)
    written, then, notes = PROGRAMS[program](handout)
    require_writable(out)
    files = [_beside(file, out) for file in handout.own]
    for name, text in written.items():
        (out / name).write_text(text, encoding="utf-8")
        files.append(out / name)
    if handout.adapter:
        notes.append(f"it needs the base's file where it is: {handout.model}")
    return files, then.format(out=shlex.quote(str(out))), notes


def _beside(file: Path, out: Path) -> Path:
    """`file` in the folder `out`: a hard link, or a copy where the disk is another."""
    target = out / file.name
    if target.exists() and target.samefile(file):
        return target
    partial = out / f".{file.name}.partial"
    partial.unlink(missing_ok=True)
    try:
        os.link(file.resolve(), partial)
    except OSError:  # another disk, or one that knows no links
        require_disk(out, file.stat().st_size / 2**20 + 1, f"a copy of {file.name}")
        shutil.copyfile(file, partial)
    os.replace(partial, target)
    return target


def _place(h: Handout, file: Path) -> str:
    """How a file is named in what we write: beside it, or where it is."""
    return f"./{file.name}" if file in h.own else str(file)


Written = tuple[dict[str, str], str, list[str]]


def ollama(h: Handout) -> Written:
    """A Modelfile (docs/modelfile.md of Ollama; quoting by its parser/parser.go)."""
    template, stop, notes = "", "", []
    if h.chat.form:
        template = f'TEMPLATE """{go_template(h.chat.form)}"""\n'
        stop = "".join(f"PARAMETER stop {json.dumps(token, ensure_ascii=False)}\n" for token in h.chat.stop)
        if h.chat.form.system is None:
            notes.append("its chat template takes no system text; Ollama will leave one out")
        if h.chat.dated:
            template = (
                "# The model's own template writes the day's date; here it is the day this file was made.\n" + template
            )
    if not template or '"""' in template.split('"""', 1)[1].rsplit('"""', 1)[0]:
        template = "# No TEMPLATE: this model's cannot be said in Go; Ollama recognises it from the GGUF or not. Try before you trust.\n"
        notes.append("its chat template cannot be said in Ollama's language: no TEMPLATE was written")
    if h.adapter:
        notes.append(
            "many versions of Ollama answer “loras are not yet implemented” for newer families: llama-server takes adapters"
        )
    known = {
        name: getattr(h.sampling, name) for name in ("max_tokens", "temperature", "min_p", "top_p", "repeat_penalty")
    }
    text = (catalogue_file().parent / "Modelfile").read_text(encoding="utf-8")
    adapter = f"ADAPTER {_place(h, h.adapter)}\n" if h.adapter else ""
    text = text.format(name=h.name, model=_place(h, h.model), adapter=adapter, template=template, stop=stop, context=h.context, **known)  # fmt: skip
    return {"Modelfile": text}, f"cd {{out}} && ollama create {h.name} -f Modelfile && ollama run {h.name}", notes


def llama_server(h: Handout) -> Written:
    """A script around llama.cpp's server; --jinja takes the template inside the GGUF."""
    s = h.sampling
    words = ["llama-server", "--model", _place(h, h.model), *(["--lora", _place(h, h.adapter)] if h.adapter else [])]
    words += ["--jinja", "--ctx-size", str(h.context), "--host", "127.0.0.1", "--port", "8080"]
    words += ["--temp", f"{s.temperature:g}", "--min-p", f"{s.min_p:g}", "--top-k", "0", "--top-p", f"{s.top_p:g}"]
    words += ["--repeat-penalty", f"{s.repeat_penalty:g}", "--predict", str(s.max_tokens)]
    if "enable_thinking" in h.chat.template:
        words += ["--chat-template-kwargs", '{"enable_thinking": false}']
    script = f'#!/bin/sh\n# {h.name}, made by Fablesmith; then open http://127.0.0.1:8080\ncd "$(dirname "$0")" && exec {shlex.join(words)} "$@"\n'
    return {"llama-server.sh": script}, "sh {out}/llama-server.sh", []


def koboldcpp(h: Handout) -> Written:
    """A settings file (.kcpps holds the command line's settings as JSON); `jinja` takes the template inside the GGUF."""
    s = h.sampling
    defaults = {
        "temperature": s.temperature,
        "min_p": s.min_p,
        "top_k": 0,
        "top_p": s.top_p,
        "rep_pen": s.repeat_penalty,
    }
    settings = {"model_param": _place(h, h.model), "contextsize": h.context, "host": "127.0.0.1", "jinja": True}
    settings |= {"lora": [_place(h, h.adapter)]} if h.adapter else {}
    settings |= {"gendefaults": json.dumps({**defaults, "max_length": s.max_tokens}), "defaultgenamt": s.max_tokens}
    settings |= {"jinja_kwargs": '{"enable_thinking": false}'} if "enable_thinking" in h.chat.template else {}
    name = f"{h.name}.kcpps"
    notes = ["paths in it are relative: start KoboldCpp in that folder"]
    return {name: json.dumps(settings, indent=1) + "\n"}, f"cd {{out}} && koboldcpp --config {name}", notes


def lmstudio(h: Handout) -> Written:
    """A preset; LM Studio takes the template inside the GGUF."""
    if h.adapter:
        raise UserError(
            "LM Studio takes no adapters, and this run exported an adapter alone",
            "export the whole model (--set export.merge=always, run again), or take --for llama-server",
        )
    s = h.sampling
    checked = lambda value: {"checked": True, "value": value}  # noqa: E731
    fields = {
        "llm.prediction.temperature": s.temperature,
        "llm.prediction.minPSampling": checked(s.min_p),
        "llm.prediction.topPSampling": checked(s.top_p),
        "llm.prediction.topKSampling": 0,
        "llm.prediction.repeatPenalty": checked(s.repeat_penalty),
        "llm.prediction.maxPredictedTokens": checked(s.max_tokens),
    }
    preset = {
        "identifier": f"@local:{h.name}",
        "name": h.name,
        "changed": False,
        "operation": {"fields": [{"key": k, "value": v} for k, v in fields.items()]},
        "load": {"fields": [{"key": "llm.load.contextLength", "value": h.context}]},
    }
    name = f"{h.name}.preset.json"
    then = f"lms import --copy --user-repo fablesmith/{h.name} {{out}}/{h.model.name} && cp {{out}}/{name} ~/.lmstudio/config-presets/"
    return (
        {name: json.dumps(preset, indent=1, ensure_ascii=False) + "\n"},
        then,
        ["without `lms`: the app's My Models takes the file"],
    )


PROGRAMS = {"ollama": ollama, "koboldcpp": koboldcpp, "llama-server": llama_server, "lmstudio": lmstudio}
