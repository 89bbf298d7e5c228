"""Look at results in napari, correct them, save them for a training: python -m napari_plugin.correct predictions/"""

from __future__ import annotations

from utils.command import importing, run_command

import sys
from importlib.util import find_spec
from pathlib import Path

from utils.cli import Parser
from utils.errors import UsageError


def main(argv: list[str] | None = None) -> None:
    parser = Parser("Look at results of sample.py in napari, correct their labels, and save these for a training.")
    parser.add_argument("results", type=Path, metavar="RESULTS", help="an output folder of sample.py --input, or one "
                        "in samples/ of a run")  # fmt: skip
    parser.add_argument("--input", type=Path, metavar="PATH", help="where the pictures are now; default: where "
                        "sample.py has read them")  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("corrected"), metavar="FOLDER",
                        help="where corrections go; default: corrected")  # fmt: skip
    args = parser.parse_args(argv)
    if find_spec("napari") is None:
        raise UsageError("napari is not installed; pip install 'napari[pyside6]>=0.9' (Python 3.11 or newer) brings it")
    with importing():
        from napari_plugin.layers import ranked
    ranked(args.results)
    with importing():
        import napari

        from napari_plugin.widgets import correct_widget, predict_widget
    viewer = napari.Viewer(title=str(args.results))
    viewer.window.add_dock_widget(predict_widget(viewer), name="Run weights")
    correct = correct_widget(viewer, args.results, args.input, args.output)
    viewer.window.add_dock_widget(correct, name="Correct results", tabify=True)  # the last one is in front
    napari.run()


def run() -> int:
    return run_command(main)


if __name__ == "__main__":
    sys.exit(run())
