"""Runs the notebooks again, and saves their outputs with small pictures.

pip install -e ".[jax,examples]" ipykernel nbclient
python notebooks/run.py
python notebooks/run.py notebooks/01_tour.ipynb
"""

import base64
import io
import pathlib
import sys
import tempfile

import nbformat
from nbclient import NotebookClient
from PIL import Image

COLOURS = 32


def shrink(picture: str) -> str:
    """Reduces the colors of a PNG in base64, to a quarter of its size."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    # This method keeps the color of a few pixels.
    image = image.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    smaller = io.BytesIO()
    image.save(smaller, "png", optimize=True)
    return base64.b64encode(smaller.getvalue()).decode()


def main() -> None:
    for path in map(pathlib.Path, sys.argv[1:] or sorted(pathlib.Path(__file__).parent.glob("*.ipynb"))):
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            # Without times, so that a run with equal outputs does not change the file.
            options = {"timeout": None, "record_timing": False, "resources": {"metadata": {"path": folder}}}
            NotebookClient(notebook, **options).execute()
        notebook.metadata["language_info"] = {"name": "python"}
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                data = output.get("data", {})
                if "image/png" in data:
                    data["image/png"] = shrink(data["image/png"])
        nbformat.write(notebook, path)
        print(path.name, path.stat().st_size // 1000, "kB")


if __name__ == "__main__":
    main()
