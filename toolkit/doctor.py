"""What stands in the way on this machine, and what to do about it: `fablesmith doctor`.

Nothing here needs torch to be whole: torch and llama.cpp are asked in processes of their own, with a time limit, so that a broken one is
a finding and not a crash.
"""

import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from toolkit.hardware import cache_dir, package_version, physical_cores

OK, NOTE, PROBLEM = "ok", "note", "problem"
LIMIT = 90  # seconds to import torch: a cold disk takes its time
RUN_DISK, RUN_RAM = 2.0, 4.0  # GB without which no run works (runner.run_recipe; the smallest stage that trains)
CUDA_LLAMA = 'CMAKE_ARGS="-DGGML_CUDA=on" pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python'
CPU_TORCH = "pip install --force-reinstall torch==2.13.0"

TORCH = """
import json, torch
found = {"version": torch.__version__, "cuda": torch.version.cuda, "seen": torch.cuda.is_available()}
if found["seen"]:
    card = torch.cuda.get_device_properties(0)
    found |= {"name": card.name, "gib": card.total_memory / 2**30, "capability": [card.major, card.minor]}
    found["bf16"] = torch.cuda.is_bf16_supported(including_emulation=False)
    torch.ones(8, device="cuda").sum().item()
else:
    checks = [getattr(torch.cpu, c, lambda: False) for c in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    found["bf16"] = any(check() for check in checks)
print(json.dumps(found))
"""
LLAMA = """
import json, llama_cpp as C
found = {"version": C.__version__, "gpu": bool(C.llama_supports_gpu_offload())}
found["system"] = C.llama_print_system_info().decode()
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `state`: ok, note (works, could be better), problem (something will not run)."""

    about: str
    said: str
    state: str = OK
    fix: str = ""


def examine() -> list[Finding]:
    """Look at everything; takes as long as importing torch once. Never raises for what it finds broken."""
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(_ask, code) for code in (TORCH, LLAMA)]
        card = _card()
        torch, llama = (job.result() for job in asked)
    found = [Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    found += [*_torch(torch, card), *_llama(llama, card or torch.get("seen"))]
    found += [*_pins(), *_room(), *_caches()]
    return found


def _ask(code: str) -> dict:
    """What a piece of code prints as JSON, in a process of its own; {"error": the last line} where it fails."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {LIMIT} s"}
    except OSError as error:
        return {"error": str(error)}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    last = (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]
    return {"error": last}


def _card() -> dict:
    """The first NVIDIA card by its own tool: name, driver, the CUDA it can run; empty where there is none."""
    try:
        ask = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits", "--id=0"]
        row = subprocess.run(ask, capture_output=True, text=True, timeout=15, check=True).stdout.strip().splitlines()[0]
        name, driver, mib = (cell.strip() for cell in row.rsplit(",", 2))
        told = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=15).stdout
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return {}
    runs = re.search(r"CUDA Version: *([\d.]+)", told)
    return {"name": name, "driver": driver, "gib": int(mib) / 1024, "cuda": runs[1] if runs else ""}


def _torch(torch: dict, card: dict) -> Iterator[Finding]:
    if "error" in torch:
        yield Finding("torch", f"does not import: {torch['error']}", PROBLEM, CPU_TORCH if not card else "pip install --force-reinstall torch")  # fmt: skip
    else:
        build = f"CUDA {torch['cuda']}" if torch["cuda"] else "CPU build"
        yield Finding("torch", f"{torch['version']}, {build}")
    if card:
        said = f"{card['name']}, {card['gib']:.0f} GiB, driver {card['driver']}, runs CUDA {card['cuda'] or '?'}"
        if "error" in torch or torch["seen"]:
            yield Finding("gpu", said)
        elif not torch["cuda"]:
            yield Finding("gpu", f"{said}; torch is a CPU build and does not use it", PROBLEM, "pip install --force-reinstall torch (its default build brings CUDA along)")  # fmt: skip
        else:
            older = card["cuda"] and _numbers(card["cuda"]) < _numbers(torch["cuda"])
            why = f"torch wants CUDA {torch['cuda']}" if older else "torch does not see it"
            fix = "a newer NVIDIA driver, or an older torch build" if older else "CUDA_VISIBLE_DEVICES, the container's GPU settings, or a restart after a driver update"  # fmt: skip
            yield Finding("gpu", f"{said}; {why}", PROBLEM, fix)
    elif torch.get("seen"):
        yield Finding("gpu", f"{torch['name']}, {torch['gib']:.0f} GiB")
    else:
        yield Finding(
            "gpu", "none seen: training and writing run on the CPU", NOTE, "recipes marked “no GPU” run as they are"
        )
    if torch.get("seen"):
        if torch["bf16"]:
            yield Finding("precision", "bfloat16")
        else:
            yield Finding("precision", "no bfloat16 on this card (a T4, say): float16 is chosen by itself", NOTE, "leave model.dtype at auto")  # fmt: skip
    elif "error" not in torch:
        yield Finding(
            "precision", "bfloat16 in hardware" if torch["bf16"] else "float32 (this CPU only emulates bfloat16)"
        )
    broken = package_version("unsloth") != "not installed" and not (card or torch.get("seen"))
    if broken:
        yield Finding("unsloth", "installed without a GPU: what it brings breaks peft and trl", PROBLEM, "pip uninstall unsloth unsloth_zoo torchvision triton")  # fmt: skip


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text))


def _llama(llama: dict, card) -> Iterator[Finding]:
    if "error" in llama:
        fix = (
            "pip install llama-cpp-python (it compiles: a C/C++ compiler must be there, `apt install build-essential`)"
        )
        yield Finding("llama.cpp", f"does not load: {llama['error']}", PROBLEM, fix)
        return
    flags = [f for f in ("AVX512_BF16", "AVX512", "AVX2", "NEON") if f"{f} = 1" in llama["system"]]
    said = f"llama-cpp-python {llama['version']}, {'GPU' if llama['gpu'] else 'CPU'} build{', ' + flags[0] if flags else ''}"
    if card and not llama["gpu"]:
        yield Finding("llama.cpp", f"{said}: writing and judging run on the CPU", NOTE, CUDA_LLAMA)
    else:
        yield Finding("llama.cpp", said)


def _pins() -> Iterator[Finding]:
    """Our own requirements, from this package's metadata, against what is installed."""
    try:
        from packaging.requirements import Requirement

        wanted = [Requirement(text) for text in requires("fablesmith") or ()]
    except PackageNotFoundError:
        yield Finding("packages", "fablesmith itself is not installed, only its folder", NOTE, "pip install -e .")
        return
    except ImportError:
        yield Finding(
            "packages", "`packaging` is missing: versions cannot be compared", PROBLEM, "pip install packaging"
        )
        return
    wrong, count = [], 0
    for need in wanted:
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            have = version(need.name)
        except PackageNotFoundError:
            wrong.append((need, "missing"))
            continue
        if not need.specifier.contains(have, prereleases=True):
            wrong.append((need, have))
    for need, have in wrong:
        yield Finding("packages", f"{need.name} is {have}, wanted {need.specifier or 'any'}", PROBLEM, f'pip install "{need.name}{need.specifier}"')  # fmt: skip
    if not wrong:
        yield Finding("packages", f"{count} requirements met")


def _room() -> Iterator[Finding]:
    for what, folder in (("disk, here", Path.cwd()), ("disk, cache", cache_dir())):
        probe = folder
        while not probe.exists():
            probe = probe.parent
        free = shutil.disk_usage(probe).free / 1e9
        if free < RUN_DISK:
            yield Finding(what, f"{free:.1f} GB free at {folder}", PROBLEM, "free some space, or set FABLESMITH_CACHE to another disk")  # fmt: skip
        else:
            yield Finding(what, f"{free:.0f} GB free at {folder}")
    try:
        import psutil

        ram = psutil.virtual_memory()
        said = f"{ram.available / 1e9:.1f} of {ram.total / 1e9:.1f} GB free, {physical_cores()} cores"
        if ram.available / 1e9 < RUN_RAM:
            yield Finding("memory", said, PROBLEM, "close other programs: the smallest run takes 4 GB")
        else:
            yield Finding("memory", said)
    except ImportError:
        yield Finding("memory", "`psutil` is missing", PROBLEM, "pip install psutil")


def _caches() -> Iterator[Finding]:
    """What is here for work without a network."""
    try:
        from toolkit.errors import UserError
        from toolkit.models.catalogue import catalogue
        from toolkit.models.resolve import MADE, embedded_gguf
    except ImportError as error:
        yield Finding("offline", f"the models' catalogue does not load: {error}", PROBLEM, "pip install -e .")
        return
    try:
        embedded_gguf()
        made = [name for name in MADE if (cache_dir() / name / "config.json").is_file()]
        yield Finding(
            "embedded", f"installed; weights to train {'made' if made else 'are made on first use, in a minute'}"
        )
    except UserError as error:
        yield Finding("embedded", str(error), PROBLEM, error.hint)
    here = [e.name for e in catalogue() if not e.repo.startswith("pypi:") and e.path.is_file()]
    hub = _hub()
    said = [f"GGUF: {', '.join(here)}" if here else "", f"hub: {', '.join(hub)}" if hub else ""]
    yield Finding(
        "offline", "; ".join(filter(None, said)) or "no other model on this machine: --offline has the embedded one"
    )


def _hub() -> list[str]:
    """Ids of models in the hub's cache that have weights."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return []
    found = sorted(p for p in Path(HF_HUB_CACHE).glob("models--*") if any(p.glob("snapshots/*/*.safetensors")))
    return [p.name.removeprefix("models--").replace("--", "/", 1) for p in found]
