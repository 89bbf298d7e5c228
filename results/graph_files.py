"""A trained network as a file that other programs run: ONNX or TorchScript, with what its numbers mean beside it."""

from __future__ import annotations

import io
import json
import logging
import warnings
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.build import image_channels_of, threshold_of
from models.latent import latent_channels
from sampling.graph import DrawsGraph, MeanGraph
from utils.data_schema import DataConfig
from utils.errors import UsageError
from utils.schema import Config
from utils.weights import Header

OPSET = 18
METADATA = "metadata.json"  # its name in a TorchScript file
COLOURS = {"rgb": "colour (red, green, blue)", "grey": "grey (ITU-R 601: .299 R + .587 G + .114 B)"}
AGREE = 1e-3  # SDF units; float32 of two programs

log = logging.getLogger("export")


def need(extra: str, install: str, *modules: str) -> None:
    """Raises UsageError, a line, where a library of this extra of pyproject.toml is absent. install: for pip."""
    for name in modules:
        try:
            import_module(name)
        except ImportError:
            raise UsageError(f"{name}: not installed; pip install {install} (extra: {extra})") from None


@dataclass(frozen=True)
class Network:
    """What is exported: the config and header of its weights, and its graph."""

    config: Config
    header: Header
    graph: MeanGraph

    @property
    def channels(self) -> int:
        """Of the image."""
        return image_channels_of(self.config.data)

    @property
    def threshold(self) -> float:
        return threshold_of(self.config)


def facts_of(network: Network) -> dict[str, Any]:
    """What the numbers of a file mean, and where they come from."""
    config, header, graph = network.config, network.header, network.graph
    data, inside = config.data, ["stretch"] if graph.prepared.stretch else []
    return {
        "name": config.name,
        "licence": header.licence,
        "commit": header.commit,
        "step": header.step,
        "input": "grey levels or red, green, blue, 0 .. 255, float32 (batch, 1 or 3, height, width), any size; "
        f"{', '.join(['made ' + COLOURS[data.color], *inside])} and scaled to [-1, 1] in the graph",
        "preparation": preparation_of(data, "colour", *inside),
        "training_size": header.images.get("size"),
        "stain_target": header.images.get("stain_target"),
        "stride": graph.stride,
        "classes": data.classes or ["foreground"],
        "truncation": data.truncation,
        "sdf": meaning_of(data),
        "threshold": network.threshold,
        "foreground": "where the least SDF of the classes is below the threshold; its class is that of the least",
        "outputs": list(graph.outputs),
        "draws": graph.draws if isinstance(graph, DrawsGraph) else None,
        "config": config.model_dump(mode="json"),
    }


def metadata_of(network: Network) -> dict[str, str]:
    """What the file says of itself; values that are no text are JSON."""
    facts = facts_of(network)
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}


def meaning_of(data: DataConfig) -> str:
    if data.representation == "binary":
        return "1 - 2 p, p the probability of the class; of several classes p(background) - p(class)"
    return (
        f"signed distance to the border in pixels over {data.truncation:g}, cut off at -1 and 1, negative inside"
        "; 0 on the last pixel of an object, so the border, half a pixel further, is at half of 1 / truncation"
    )


def preparation_of(data: DataConfig, *left_out: str) -> list[str]:
    """What happens to a picture before the network sees it, in this order, but for the steps of these names."""
    steps = {}
    if data.stain != "none":
        steps["stain"] = f"stains normalised ({data.stain}) to stain_target"
    steps["colour"] = COLOURS[data.color]
    if data.stretch:
        steps["stretch"] = "stretched: 0.1th and 99.9th percentile to 0 and 255"
    if data.size is not None:
        steps["size"] = "resized, bilinear, to {} x {} pixels (height, width)".format(*data.size)
    return [text for name, text in steps.items() if name not in left_out]


def example_inputs(graph: MeanGraph, channels: int, height: int, width: int, batch: int = 2) -> tuple[Tensor, ...]:
    """Random ones."""
    generator = torch.Generator().manual_seed(0)
    image = 255.0 * torch.rand((batch, channels, height, width), generator=generator)
    if "xi" not in graph.inputs:
        return (image,)
    return image, torch.randn((batch, latent_channels([1])[0], height, width), generator=generator)


@torch.no_grad()
def torchscript_bytes(network: Network) -> bytes:
    """The file. It is compared with the graph at another size than it was recorded at."""
    graph, channels = network.graph, network.channels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecation, and of shapes that are constants, which the comparison covers
        traced = torch.jit.trace(graph, _recorded(graph, channels), check_trace=False)
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer, _extra_files={METADATA: json.dumps(metadata_of(network))})
    other = _others(graph, channels)
    _compare(graph, other, traced(*other), "TorchScript")
    return buffer.getvalue()


@torch.no_grad()
def onnx_bytes(network: Network) -> bytes:
    """The file. onnxruntime's outputs are compared with those of the graph, at another size.

    By the exporter of traces: torch's newer one takes minutes over free sizes, and leaves the padding in 64 bits.
    Raises UsageError where onnx or onnxruntime is absent.
    """
    need("export", "onnx onnxruntime", "onnx", "onnxruntime")
    import onnx
    import onnxruntime

    graph, channels = network.graph, network.channels
    free = ["batch", "channels", "height", "width"]
    axes = {name: dict(enumerate(free)) for name in [*graph.inputs, *graph.outputs]}
    if "xi" in axes:  # of other sizes than the image's where it is one number for all
        axes["xi"] = {0: "xi_batch", 2: "xi_height", 3: "xi_width"}
    for name in graph.outputs:
        del axes[name][1]
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            _recorded(graph, channels),
            buffer,  # type: ignore[arg-type]  # which this exporter takes, too
            dynamo=False,
            opset_version=OPSET,
            input_names=graph.inputs,
            output_names=graph.outputs,
            dynamic_axes=axes,
        )
    model = onnx.load_from_string(buffer.getvalue())
    onnx.helper.set_model_props(model, metadata_of(network))
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    other = _others(graph, channels)
    arrays = {name: x.numpy() for name, x in zip(graph.inputs, other, strict=True)}
    _compare(graph, other, [torch.from_numpy(np.array(y)) for y in session.run(None, arrays)], "onnxruntime")
    return content


def _recorded(graph: MeanGraph, channels: int) -> tuple[Tensor, ...]:
    """What a file is recorded with: images that are in colours where the network's are grey, and the other way round;
    it takes both."""
    return example_inputs(graph, 4 - channels, 2 * graph.stride, 3 * graph.stride)


def _others(graph: MeanGraph, channels: int) -> tuple[Tensor, ...]:
    """What it is compared at."""
    return example_inputs(graph, channels, 3 * graph.stride - 1, 2 * graph.stride + 1, batch=1)


def _compare(graph: MeanGraph, inputs: tuple[Tensor, ...], found: Any, program: str) -> None:
    expected = graph(*inputs)
    pairs = [(expected, found)] if isinstance(found, Tensor) else list(zip(_listed(expected), found, strict=True))
    # A probability may jump where an SDF is on the threshold.
    difference = max(float((a - b).abs().max()) for a, b in pairs[:2])
    log.info("%s differs from torch by %.1e at most", program, difference)
    if not difference < AGREE:
        raise RuntimeError(f"{program} differs from torch by {difference:.3g}; nothing was written")


def _listed(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)
