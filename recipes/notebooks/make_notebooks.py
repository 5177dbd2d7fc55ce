"""recipes/notebooks/src/*.py → *.ipynb, for Colab. The scripts are what is written and read; the notebooks are made of them.

python recipes/notebooks/make_notebooks.py
"""

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = "fablesmith/fablesmith"  # on GitHub: the one place where the address of the badges stands
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/{}/blob/main/recipes/notebooks/{}.ipynb)"


def sources() -> list[Path]:
    return sorted(p for p in (HERE / "src").glob("*.py") if not p.name.startswith("_"))


def notebook(source: Path) -> str:
    """The notebook of a script, as JSON text: the same text for the same script.

    In a script `# %% setup` stands for the cells of src/_setup.py, {badge} for the link to Colab, and {needs:RECIPE} for what
    that recipe says it needs.
    """
    import jupytext
    import nbformat

    sys.path.insert(0, str(HERE.parents[1]))
    from toolkit.recipe import load_recipe

    setup = (HERE / "src" / "_setup.py").read_text(encoding="utf-8").replace("{repository}", REPOSITORY)
    text = source.read_text(encoding="utf-8").replace("# %% setup\n", setup)
    text = text.replace("{badge}", BADGE.format(REPOSITORY, source.stem))
    text = re.sub(r"\{needs:([\w.-]+)\}", lambda found: load_recipe(found[1]).memory, text)
    book = jupytext.reads(text, fmt="py:percent")
    for number, cell in enumerate(book.cells):
        cell["id"] = f"cell-{number}"
    book.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    book.nbformat, book.nbformat_minor = 4, 5
    return nbformat.writes(book) + "\n"


if __name__ == "__main__":
    for source in sources():
        (HERE / f"{source.stem}.ipynb").write_text(notebook(source), encoding="utf-8")
        print(HERE / f"{source.stem}.ipynb")
