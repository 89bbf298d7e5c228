"""A trained network as a package of the BioImage Model Zoo: a zip file with a model description (rdf.yaml, format 0.5),
the network as ONNX and TorchScript, an example with its outputs, a cover and a documentation.

Made without the zoo's libraries; `bioimageio test` of bioimageio.core checks it (docs/export.md).
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data.images import PERCENTILES
from data.inputs import PreparedPicture
from data.patches import Window
from data.pictures import open_picture
from data.stain import Stain
from report.figures import color_pixels, label_map
from results.graph_files import OPSET, Network, facts_of, meaning_of, onnx_bytes, preparation_of, torchscript_bytes
from sampling.graph import DrawsGraph
from utils.errors import UsageError, cut

FORMAT = "0.5.12"
SIDE = 256  # pixels of the example at most
CELL = 256  # pixels of a picture of the cover
SHOWN = 4  # draws on it
EPS = 1e-6  # that readers of the format divide with
PAPER = {"text": "Bogensperger et al.: Score-Based Generative Models for Medical Image Segmentation using Signed "
         "Distance Functions. GCPR 2023", "doi": "10.48550/arXiv.2303.05966"}  # fmt: skip


@dataclass(frozen=True)
class Known:
    """Of a data set: whom to cite, and the zoo's tags."""

    text: str
    doi: str
    tags: tuple[str, ...]


DATA = {
    "dsb2018": Known("Caicedo et al.: Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl. "
                     "Nature Methods 16 (2019)", "10.1038/s41592-019-0612-7",
                     ("fluorescence-light-microscopy", "transmission-light-microscopy", "nuclei")),
    "glas": Known("Sirinukunwattana et al.: Gland segmentation in colon histology images: the GlaS challenge contest. "
                  "Medical Image Analysis 35 (2017)", "10.1016/j.media.2016.08.008",
                  ("transmission-light-microscopy", "tissue", "glands")),
    "monuseg": Known("Kumar et al.: A dataset and a technique for generalized nuclear segmentation for computational "
                     "pathology. IEEE Transactions on Medical Imaging 36 (2017)", "10.1109/TMI.2017.2677499",
                     ("transmission-light-microscopy", "nuclei")),
    "lidc": Known("Armato et al.: The Lung Image Database Consortium (LIDC) and Image Database Resource Initiative "
                  "(IDRI). Medical Physics 38 (2011)", "10.1118/1.3528204", ("other", "tissue", "ct")),
}  # fmt: skip
MEANINGS = {"sdf": "mean SDF, negative inside", "mean": "mean SDF of the draws, negative inside",
            "std": "standard deviation of the draws' SDFs",
            "probability": "share of draws that call a pixel foreground"}  # fmt: skip


class _Plain(yaml.SafeDumper):
    """Without references from one place to another, which not every reader knows."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def spdx(licence: str) -> str | None:
    """SPDX identifier of a licence that a line names, as "CC BY-NC 4.0", or None."""
    if re.search(r"\bCC0\b", licence):
        return "CC0-1.0"
    if found := re.search(r"\bCC[ -](BY(?:-(?:NC|SA|ND))*)[ -](\d\.\d)\b", licence):
        return f"CC-{found[1]}-{found[2]}"
    return licence if licence in ("MIT", "Apache-2.0", "BSD-3-Clause", "BSD-2-Clause") else None


def package_bytes(network: Network, picture: Path, authors: Sequence[str], card: Path | None) -> bytes:
    """The zip file.

    picture: whose middle becomes the test input. authors: names. card: a Markdown file on the weights, if it is there.
    Raises UsageError where the picture is too small or shows no object, DataError where it cannot be read.
    """
    raw = example(network, picture)
    with torch.no_grad():
        image = torch.from_numpy(preprocessed(raw, network.config.data.stretch))
        found = network.graph(image)
        draws = network.graph.drawn(image) if isinstance(network.graph, DrawsGraph) else None
    outputs = dict(zip(network.graph.outputs, [found] if isinstance(found, Tensor) else found, strict=True))
    mean = next(iter(outputs.values())).numpy()
    if not (mean.min(axis=1) < network.threshold).any():
        raise UsageError(f"--input {picture}: no object is found in its middle; take a picture that shows some")
    files = {"weights.pt": torchscript_bytes(network), "weights.onnx": onnx_bytes(network), "test_image.npy": npy(raw)}
    files |= {f"test_{name}.npy": npy(values.numpy()) for name, values in outputs.items()}
    files["cover.png"] = png(cover(image, outputs, draws, network.threshold))
    said = card.read_text() if card is not None and card.is_file() else None
    files["README.md"] = documentation(network, said).encode()
    if (licence := spdx(network.header.licence)) is None:
        files["LICENSE.txt"] = f"{network.header.licence}\n".encode()
    described = {**description(network, authors, said), **tensors(network, files), "weights": weights(files),
                 "license": licence or source("LICENSE.txt", files)}  # fmt: skip
    described |= {"documentation": source("README.md", files), "covers": [source("cover.png", files)]}
    files["rdf.yaml"] = yaml.dump(described, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as package:
        for name, content in files.items():
            package.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def example(network: Network, path: Path) -> np.ndarray:
    """(1, C, side, side) float32 grey levels 0 .. 255: the middle of a picture, prepared but for the stretch, which
    the description says."""
    data, stride = network.config.data, network.graph.stride
    plain = data.model_copy(update={"stretch": False})
    target = Stain.noted(network.header.images.get("stain_target"))
    prepared = PreparedPicture(open_picture(path, data), plain, target)
    side = min(*prepared.shape, SIDE) // stride * stride
    if side == 0:
        raise UsageError(f"--input {path}: is {prepared.shape[1]} x {prepared.shape[0]} pixels; {stride} are needed")
    top, left = ((length - side) // 2 for length in prepared.shape)
    return prepared.planes(Window(top, left, side, side))[None].astype(np.float32)


def preprocessed(raw: np.ndarray, stretch: bool) -> np.ndarray:
    """What readers of the description make of the example (1, C, H, W)."""
    if not stretch:
        return raw
    low, high = np.percentile(raw, PERCENTILES)
    return np.asarray(255 * ((raw - low) / (high - low + EPS)).clip(0, 1), np.float32)


def description(network: Network, authors: Sequence[str], card: str | None) -> dict[str, Any]:
    """What is said of the whole."""
    facts = facts_of(network)
    known = DATA.get(network.config.data.source)
    maps = f"Mean, std and foreground probability of {facts['draws']} draws" if facts["draws"] else "Mean"
    about = f"{maps} of a segmentation as a signed distance function (SDF), negative inside."
    name = re.sub(r"[^A-Za-z0-9_+ ()-]", "-", facts["name"])
    return {
        "format_version": FORMAT,
        "type": "model",
        "name": cut(f"{name} (segmentation by signed distances)", 64),
        "description": cut(f"{_first(card)} {about}".strip(), 500),
        "timestamp": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "authors": [{"name": author} for author in authors],
        "cite": [PAPER, *([{"text": known.text, "doi": known.doi}] if known else [])],
        "tags": ["2d", "unet", "pytorch", "semantic-segmentation", "uncertainty", *(known.tags if known else ())],
        "config": {
            "bioimageio": {"reproducibility_tolerance": tolerances(network)},
            "generative_segmentation_sdf": {key: value for key, value in facts.items() if key != "config"},
        },
    }


def _first(card: str | None) -> str:
    """The first sentence of a card's text, without its marks."""
    texts = [part for part in (card or "").split("\n\n") if part.strip() and not part.startswith("#")]
    return re.sub(r"[`*]", "", " ".join(texts[0].split()).split(". ")[0]).rstrip(".") + "." if texts else ""


def tolerances(network: Network) -> list[dict[str, Any]]:
    """A share of draws jumps by a whole draw where an SDF lies on the threshold."""
    if "probability" not in network.graph.outputs:
        return []
    return [{"output_ids": ["probability"], "absolute_tolerance": 1e-3, "mismatched_elements_per_million": 1000}]


def tensors(network: Network, files: dict[str, bytes]) -> dict[str, Any]:
    """Inputs and outputs."""
    data, stride, classes = network.config.data, network.graph.stride, network.config.data.classes
    colours = ["red", "green", "blue"] if network.channels == 3 else ["grey"]
    free = [{"type": "space", "id": axis, "size": {"min": stride, "step": stride}} for axis in "yx"]
    same = [{"type": "space", "id": axis, "size": {"tensor_id": "image", "axis_id": axis}} for axis in "yx"]
    steps: list[dict[str, Any]] = [{"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}]
    if data.stretch:
        low, high = PERCENTILES
        whole = {"axes": ["channel", "y", "x"], "min_percentile": low, "max_percentile": high, "eps": EPS}
        steps += [{"id": "scale_range", "kwargs": whole}, {"id": "clip", "kwargs": {"min": 0.0, "max": 1.0}},
                  {"id": "scale_linear", "kwargs": {"gain": 255.0, "offset": 0.0}}]  # fmt: skip
    described = "grey levels of any range" if data.stretch else "grey levels 0 .. 255, prepared as in README.md"
    image = {
        "id": "image",
        "description": described,
        "axes": [{"type": "batch"}, {"type": "channel", "channel_names": colours}, *free],
        "data": {"type": "float32", "range": [None, None] if data.stretch else [0.0, 255.0]},
        "preprocessing": steps,
        "test_tensor": source("test_image.npy", files),
    }  # fmt: skip
    outputs = []
    for name in network.graph.outputs:
        names = [f"class_{k}" for k in classes] if classes and name != "probability" else ["foreground"]
        ranges = {"probability": [0.0, 1.0], "std": [0.0, None]}
        outputs.append({
            "id": name,
            "description": MEANINGS[name],
            "axes": [{"type": "batch"}, {"type": "channel", "channel_names": names}, *same],
            "data": {"type": "float32", "range": ranges.get(name, [None, None])},
            "test_tensor": source(f"test_{name}.npy", files),
        })  # fmt: skip
    return {"inputs": [image], "outputs": outputs}


def weights(files: dict[str, bytes]) -> dict[str, Any]:
    version = torch.__version__.split("+")[0]
    return {
        "torchscript": {**source("weights.pt", files), "pytorch_version": version},
        "onnx": {**source("weights.onnx", files), "opset_version": OPSET, "parent": "torchscript"},
    }


def source(name: str, files: dict[str, bytes]) -> dict[str, str]:
    return {"source": name, "sha256": hashlib.sha256(files[name]).hexdigest()}


def documentation(network: Network, card: str | None) -> str:
    """README.md: the card, and what the numbers of the package mean."""
    data, header, size = network.config.data, network.header, network.header.images.get("size", (0, 0))
    title = f"# {network.config.name}\n\nLicence: {header.licence}. Trained for {header.step} steps."
    steps = [f"- {step}\n" for step in preparation_of(data, "stretch")]
    notes = [f"The network was trained on {size[0]} x {size[1]} pixels (height, width)."]
    if data.stretch:
        notes.append(
            "The stretch between percentiles is part of the description; tiles need that of the whole picture."
        )
    if isinstance(network.graph, DrawsGraph):
        notes.append(
            f"The noise of the {network.graph.draws} draws is in the network: the same image gives the same maps."
        )
    outputs = [f"- `{name}`: {MEANINGS[name]}\n" for name in network.graph.outputs]
    return f"""{(card or title).strip()}

## This package

The input is (batch, channel, y, x). What a picture needs before, as no description can say it:

{"".join(steps)}
{" ".join(notes)}

Outputs are (batch, channel, y, x):

{"".join(outputs)}
SDF: {meaning_of(data)}. Foreground is where the least SDF of the classes is below {network.threshold:g}.

## Validation

Take pictures that the training has not seen, with masks drawn by hand. Compare these with the foreground by F1 or IoU,
picture by picture, and the standard deviation with the error of the mean.
"""


def cover(image: Tensor, outputs: dict[str, Tensor], draws: Tensor | None, threshold: float) -> Image.Image:
    """Image and mean beside each other, or with std and probability above masks of draws: twice as wide as high."""
    pixels = image[0].permute(1, 2, 0).numpy().astype(np.uint8)
    mean, *others = (values[0].numpy() for values in outputs.values())
    cells = [("image", pixels.squeeze()), ("mean SDF", color_pixels(mean.min(axis=0), -1, 1, "RdBu"))]
    if draws is not None:
        std, probability = others
        most = max(float(std.max()), 1e-3)
        cells.append(("std", color_pixels(std.max(axis=0), 0, most, "magma")))
        cells.append(("probability", color_pixels(probability[0], 0, 1, "viridis")))
        drawn = draws[:SHOWN, 0].amin(dim=1).numpy() < threshold
        cells += [(f"draw {i}", label_map(mask, 1)) for i, mask in enumerate(drawn, start=1)]
    canvas = Image.new("RGB", (CELL * min(len(cells), 4), CELL * -(-len(cells) // 4)))
    font = ImageFont.load_default(16)
    for i, (title, values) in enumerate(cells):
        cell = Image.fromarray(values).convert("RGB").resize((CELL, CELL), Image.Resampling.NEAREST)
        style: Any = {"fill": "white", "font": font, "stroke_width": 2, "stroke_fill": "black"}
        ImageDraw.Draw(cell).text((6, 4), title, **style)
        canvas.paste(cell, (CELL * (i % 4), CELL * (i // 4)))
    return canvas


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()
