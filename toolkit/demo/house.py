"""What the page stands on: the models and runs that are here, the desk, and where votes and history go."""

from dataclasses import dataclass, field
from pathlib import Path

from toolkit.demo.desk import Desk
from toolkit.demo.history import history_file
from toolkit.errors import UserError
from toolkit.models.resolve import exported_gguf
from toolkit.records import read_jsonl

PREMISES = Path(__file__).resolve().parents[1] / "data" / "premises.jsonl"
RECIPE = "recipe.json"  # what makes a folder a run


@dataclass(frozen=True)
class Tab:
    """What a tab tells the page: its choices of a model, and what to do (function, inputs, outputs) when it is shown."""

    models: list = field(default_factory=list)
    shown: tuple | None = None


@dataclass
class House:
    """Args:
    default: the model that is chosen at first.
    runs: the folder of runs.
    votes: file of votes, that of `fablesmith vote`.
    local: whether only this machine can reach the page; else nothing is trained from it.
    """

    default: str = "embedded"
    runs: Path = Path("runs")
    votes: Path = Path("votes.jsonl")
    local: bool = True
    history: Path = field(default_factory=history_file)
    desk: Desk = field(default_factory=Desk)

    def writers(self) -> dict[str, str]:
        """Label → what `load_engine` takes, of every model that is on this machine: the chosen one first."""
        found = {_label(self.default): self.default, "embedded": "embedded"}
        found |= {f"{n}": str(self.runs / n) for n in self.run_names() if exported_gguf(self.runs / n)}
        from toolkit.models.catalogue import catalogue

        found |= {
            e.name: e.name
            for e in catalogue()
            if e.name not in found and not e.repo.startswith("pypi:") and e.path.is_file()
        }
        return found

    def warm(self) -> None:
        """Open the chosen model now, unless the desk has other work; its failure is told when it is asked for something."""
        if not self.desk.busy and not self.desk.models.holds(self.default):
            self.desk.ask(self._open)

    def _open(self, models, job):
        models.get(self.default)
        yield None

    def model(self, label) -> str:
        """The model of that label. Raises UserError for any other: the page opens nothing that it did not offer."""
        try:
            return self.writers()[label]
        except (KeyError, TypeError):
            raise UserError("there is no such model here", "choose one from the list") from None

    @staticmethod
    def premises(language: str) -> list[str]:
        """The package's own premises in that language."""
        return [p["text"] for p in read_jsonl(PREMISES) if p["language"] == language]

    def run_names(self) -> list[str]:
        """Names of the runs, the last changed first."""
        if not self.runs.is_dir():
            return []
        found = [p for p in self.runs.iterdir() if (p / RECIPE).is_file()]
        return [p.name for p in sorted(found, key=lambda p: (p / RECIPE).stat().st_mtime, reverse=True)]

    def run(self, name) -> Path:
        """The folder of a run by its name. Raises UserError for what is no run here, whatever path it spells."""
        if name not in self.run_names():
            raise UserError("there is no such run here", "choose one from the list")
        return self.runs / name


def _label(spec: str) -> str:
    path = Path(spec)
    return path.name or spec if not spec.startswith(("http://", "https://")) else spec
