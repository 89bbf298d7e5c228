"""What utils/export.py leaves to the upper floors: a trained network in the formats of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from results.bioimageio import package_bytes
from results.graph_files import Network, onnx_bytes, torchscript_bytes
from sampling.graph import draws_in_one, graph_of
from utils.cli import log_to_console
from utils.config import parse_config
from utils.errors import UsageError
from utils.files import write_bytes
from utils.weights import Header

USUAL_DRAWS = 16  # of a package for bioimage.io


def write_network(args: Any, path: Path, header: Header) -> None:
    """args: of that command. path: of the checkpoint or weights. header: theirs.

    Raises UsageError before anything is written.
    """
    log_to_console(quiet=False)
    config = parse_config(header.config, path)
    output = Path(args.output)
    if args.format == "bioimageio":
        draws = args.draws or (USUAL_DRAWS if draws_in_one(config.sde, config.sampling) else None)
        network = Network(config, header, graph_of(config, path, draws))
        card = path.with_suffix(".md")
        content = package_bytes(network, Path(args.input), args.author, card if args.weights else None)
    else:
        if args.stretch and (not config.data.stretch or config.data.size is not None):
            raise UsageError(f"--stretch: {path}: goes with data.stretch: true and data.size: null")
        network = Network(config, header, graph_of(config, path, args.draws, args.stretch))
        content = (onnx_bytes if args.format == "onnx" else torchscript_bytes)(network)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(output, content)
    print(f"{output}: {len(content) / 2**20:.1f} MiB")
