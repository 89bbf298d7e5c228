"""Draw segmentations of the test images: python sample.py --config cfg/glas.yaml"""

from __future__ import annotations

from utils.command import StopFlag, run_command

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.dataset import Patch, load_split
from data.scenes import Scene, scenes_of
from report.figures import trajectory
from results.compared import compare
from results.generated import check_generation, finish_samples, image_requests, pair_requests, write_samples
from results.predicted import inputs_of, open_output, predict
from results.sampled import ImageResult, open_folder, settings_of, write_image
from results.summary import finish
from sampling.drawer import ROUND, Drawer, Timed, drawer_of, image_tensor, scene_groups, whole_draws, whole_moments
from sampling.loading import load_denoiser
from sampling.sampler import draws_of
from sampling.segmenter import Segmenter
from utils.cli import common_parser, log_to_console, read_config, shown
from utils.config import dump_config, override_config
from utils.data_schema import DataConfig
from utils.errors import UsageError
from utils.files import whole_file, write_json, write_text
from utils.runs import (
    checked_run,
    checkpoint_path,
    choose_device,
    device_name,
    environment,
    file_hash,
    new_folder,
    newest_run,
    peak_memory_mib,
)
from utils.schema import Config
from utils.sections import EvaluationConfig, SamplingConfig
from utils.weights import read_header

log = logging.getLogger("sample")

NEEDS = {"--output": "--input", "--overwrite": "--input", "--count": "--generate"}
APART = {
    "--input": {"--generate", "--split"},
    "--generate": {"--split"},
    "--weights": {"--config", "--run", "--checkpoint"},  # they have their own
}


def sample_group(
    drawer: Drawer,
    scenes: list[Scene],
    data: DataConfig,
    sampling: SamplingConfig,
    evaluation: EvaluationConfig,
    folder: Path,
) -> None:
    """All draws of a few images, and their files. With draws: auto, rounds of a few draws for every image whose MMSE
    map's standard error is above the tolerance."""
    results = [ImageResult(drawer, scene, data, evaluation, sampling.save_draws) for scene in scenes]
    auto, errors = sampling.draws == "auto", [drawer.standard_error() for _ in scenes]

    def sure(i: int) -> bool:
        return auto and errors[i].value <= sampling.standard_error

    drawn: Timed[Any]
    if sampling.sampler == "mean" and drawer.denoiser.second_moment:
        drawn = Timed(whole_moments(drawer, scene) for scene in scenes)
        for result, (mmse, std) in zip(results, drawn, strict=True):
            result.set_moments(mmse, std)
    else:
        drawn = Timed(whole_draws(drawer, scenes, draws_of(sampling, drawer.denoiser), sure, ROUND if auto else None))
        for i, sdf, evaluations in drawn:
            results[i].add(sdf, evaluations)
            if auto:
                errors[i].add(sdf)
    total = sum(len(result.draw_counts) for result in results)
    for result in results:
        draws = len(result.draw_counts)
        costs = {
            "nfe": (result.evaluations + drawer.denoiser.shared) / draws,
            "seconds": drawn.seconds * draws / total,
            "peak_memory_mib": peak_memory_mib(drawer.device),
        }
        write_image(result, folder, costs)


def animate(drawer: Drawer, patch: Patch, path: Path) -> None:
    """A GIF of the first draw of one image."""
    frames: list[tuple[float, np.ndarray]] = []

    def keep(m: Tensor, noise: float) -> None:
        frames.append((noise, m[0].min(dim=0).values.float().cpu().numpy() / drawer.sdf_scale))

    list(drawer(image_tensor([patch]), [patch.key], 1, callback=keep))
    with whole_file(path) as temporary:
        trajectory(frames, drawer.threshold, temporary)


def run_of_weights(config: Config, resume: bool) -> Path:
    """A run folder for samples of weights that were trained elsewhere, apart from those of trainings."""
    root = Path("runs/weights")
    if resume:
        return newest_run(config.name, root)
    run = new_folder(root / config.name)
    write_text(run / "config.yaml", dump_config(config))
    return run


def generate(config: Config, run: Path | None, path: Path, device: torch.device, args: Any, stop: StopFlag) -> None:
    """Pairs, or images for the test masks, of a joint model."""
    requests = (pair_requests if args.generate == "pairs" else image_requests)(config.data, args.count)
    drawer = drawer_of(config, load_denoiser(config, path, device))
    drawer.before_evaluation = stop.raise_if_set
    settings = {**settings_of(config, path, "test"), "generate": args.generate, "count": args.count}
    with open_folder(run or run_of_weights(config, args.resume), settings, args.resume, "generated") as folder:
        with tqdm(total=len(requests), desc="generating", unit="image", disable=args.quiet) as bar:
            for made in write_samples(drawer, requests, config.data, folder):
                bar.update(made)
                stop.raise_if_set()
        write_json(folder / "environment.json", environment(device))
        nfe = drawer.evaluations or None  # none where all samples were there already
        facts = {"generated": args.generate, "nfe_per_sample": nfe, **facts_of(drawer, config.sampling.sampler, path)}
        summary = finish_samples(folder, requests, config.data, facts)
        print(f"{summary['samples']} {args.generate}, {summary['foreground']:.1%} foreground: {folder / 'sheet.png'}")


def facts_of(drawer: Drawer, sampler: str, path: Path) -> dict[str, Any]:
    """What a summary says of how its results were made."""
    return {
        "sampler": sampler,
        "threshold": drawer.threshold,
        "device": device_name(drawer.device),
        "checkpoint": str(path),
        "seed": drawer.seed,
    }


def sample(config: Config, run: Path | None, path: Path, device: torch.device, args: Any, stop: StopFlag) -> None:
    scenes = scenes_of(load_split(config.data, args.split, instances=True))
    drawer = drawer_of(config, load_denoiser(config, path, device))
    drawer.before_evaluation = stop.raise_if_set  # an image in hand is dropped: nothing of it is written yet
    run = run or run_of_weights(config, args.resume)
    with open_folder(run, settings_of(config, path, args.split), args.resume) as folder:
        log.info("%s: %d images, %s draws each", folder, len(scenes), config.sampling.draws)
        bar = tqdm(total=len(scenes), desc="sampling", unit="image", disable=args.quiet)
        at_once = ROUND if config.sampling.draws == "auto" else draws_of(config.sampling, drawer.denoiser)
        for group in scene_groups(scenes, max(1, drawer.max_batch // at_once)):
            stop.raise_if_set()
            if not all((folder / scene.key / "scores.json").is_file() for scene in group):
                sample_group(drawer, group, config.data, config.sampling, config.evaluation, folder)
            bar.update(len(group))
        bar.close()
        if config.sampling.animate and not (folder / "trajectory.gif").is_file():
            animate(drawer, scenes[0].parts[0], folder / "trajectory.gif")
        stop.raise_if_set()
        write_json(folder / "environment.json", environment(device))
        facts = {"split": args.split, **facts_of(drawer, config.sampling.sampler, path)}
        summary, report = finish(folder, scenes, config, facts)
        print(
            f"MMSE of {summary['draws']:.4g} draws: F1 {summary['mmse']['f1']:.4f}, IoU {summary['mmse']['iou']:.4f}; "
            f"single draws: F1 {summary['single']['f1']:.4f}, IoU {summary['single']['iou']:.4f}\n"
            f"{summary['images']} images, {summary['nfe_per_draw']:.4g} evaluations per draw, "
            f"{summary['seconds_per_image']:.2f} s per image, {summary['peak_memory_mib']:.0f} MiB\n"
            f"report: {report}"
        )


def predict_all(segmenter: Segmenter, path: Path, args: Any, stop: StopFlag) -> None:
    """--input and --output."""
    if args.resume and not args.output:
        raise UsageError("--resume with --input needs --output, the folder of the results to go on with")
    inputs = inputs_of(Path(args.input))
    output = Path(args.output) if args.output else new_folder(Path("predictions"))
    config = segmenter.config
    settings = {"checkpoint": file_hash(path), "sampling": config.sampling.model_dump(mode="json"), "seed": config.seed}
    with open_output(output, settings, args.overwrite, args.resume):
        segmenter.drawer.before_evaluation = stop.raise_if_set
        with tqdm(total=len(inputs), desc="predicting", unit="image", disable=args.quiet) as bar:
            rows = predict(segmenter, inputs, output, stop.raise_if_set, bar.update)
        write_json(output / "environment.json", environment(segmenter.drawer.device))
        print(f"{len(rows)} images: {output / 'results.csv'}, {output / 'report.html'}")


def config_of(args: Any) -> Config | None:
    """That of --config, --weights or --run. Raises UsageError where none is named, or the weights' and another."""
    if args.weights:
        path = Path(args.weights)
        header = read_header(path)
        log.info("%s: %s", path, header.licence)
        return shown(override_config(header.config, path, args.overrides), args)
    return read_config(args, checked_run(Path(args.run), "--run ") if args.run else None)


def run_and_checkpoint(args: Any, name: str) -> tuple[Path | None, Path]:
    """The run folder, none for --weights, and the checkpoint. name: of the config."""
    if args.weights:
        return None, Path(args.weights)
    run = Path(args.run) if args.run else newest_run(name)
    return checked_run(run, "--run "), checkpoint_path(run, args.checkpoint)


def check_options(given: set[str]) -> None:
    """Raises UsageError for options that do not go together."""
    for option, owner in NEEDS.items():
        if option in given and owner not in given:
            raise UsageError(f"{option} goes with {owner}")
    for option, others in APART.items():
        if option in given and given & others:
            raise UsageError(f"leave out {', '.join(sorted(given & others))}, which {option} does not go with")
    if "--compare" in given and (others := given - {"--compare", "--quiet"}):
        raise UsageError(f"leave out {', '.join(sorted(others))}; --compare goes alone")


def main(argv: list[str] | None = None) -> None:
    parser = common_parser("Draw segmentations of the test images and score them.", config_of="--run or --weights")
    parser.add_argument("--run", metavar="RUN", help="a run folder; default: the newest run of the config's name")
    parser.add_argument("--checkpoint", default="best", metavar="best|last|PATH", help="default: best")
    parser.add_argument("--weights", metavar="FILE", help="weights with their config (weights/) instead of a run")
    parser.add_argument("--split", choices=("val", "test"), help="of the data set; default: test")
    parser.add_argument("--resume", action="store_true", help="go on with the newest, interrupted sampling of the run")
    parser.add_argument("--input", metavar="PATH", help="predict on a picture, or a folder of them, instead")
    parser.add_argument("--output", metavar="FOLDER", help="where the results of --input go; default: "
                        "predictions/<time>")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace results in --output")
    parser.add_argument("--compare", nargs="+", metavar="RUN", help="put sampled runs side by side instead")
    parser.add_argument("--generate", choices=("pairs", "images"), help="with model.kind: joint, instead of "
                        "segmentations: pairs of image and mask, or images for the test masks")  # fmt: skip
    parser.add_argument("--count", type=int, metavar="N", help="how many to generate; default: 64 pairs, or an image "
                        "for each test mask")  # fmt: skip
    args = parser.parse_args(argv)
    check_options(parser.given(args))
    args.split = args.split or "test"
    if args.compare:
        print(compare(args.compare, Path("runs/comparisons")))
        return
    log_to_console(args.quiet)
    config = config_of(args)
    if config is None:
        return
    if args.generate:
        check_generation(config.model.kind, config.sampling.sampler, args.count)
    stop = StopFlag()
    device = choose_device(args.device)
    run, path = run_and_checkpoint(args, config.name)
    if args.input:
        predict_all(Segmenter.from_checkpoint(config, path, device), path, args, stop)
    else:
        command = generate if args.generate else sample
        command(config, run, path, device, args, stop)


if __name__ == "__main__":
    sys.exit(run_command(main))
