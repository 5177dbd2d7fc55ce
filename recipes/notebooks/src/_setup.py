# %% [markdown]
# ## Set up
#
# Run this cell first, each time. On Colab it installs Fablesmith (llama.cpp is compiled: 4 to 10 minutes on two cores). Set `DRIVE = True` to keep
# the run on your Google Drive: after a disconnect, run the notebook again from the top, and it goes on where it was.

# %% tags=["parameters"]
import json
import os
import subprocess
import sys
from pathlib import Path

DRIVE = False
COLAB = "google.colab" in sys.modules
TINY = json.loads(os.environ.get("FABLESMITH_TINY", "{}"))

if COLAB:
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "fablesmith @ git+https://github.com/{repository}"], check=True
    )
if COLAB and DRIVE:
    from google.colab import drive

    drive.mount("/content/drive")
RUNS = Path("/content/drive/MyDrive/fablesmith" if COLAB and DRIVE else os.environ.get("FABLESMITH_RUNS", "runs"))


def fablesmith(*words) -> None:
    """A command of Fablesmith, as in a terminal; what it says is shown here."""
    command = [sys.executable, "-m", "toolkit", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
    if process.returncode:
        raise RuntimeError(f"fablesmith {words[0]} ended with {process.returncode}: the lines above say why")


def small(what: str) -> list[str]:
    """Words that shrink a command where the project's own tests run this notebook; none otherwise."""
    return TINY.get(what, [])
