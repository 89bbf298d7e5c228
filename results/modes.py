"""What sample.py does: samples of a split, generated pairs, predictions on pictures."""

from __future__ import annotations

from utils.command import StopFlag

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.dataset import Split, planes_of
from data.rows import Patch
from data.scenes import Scene, scenes_of
from report.figures import trajectory
from results.generated import check_generation, finish_samples, image_requests, pair_requests, write_samples
from results.ngff import zarr
from results.predicted import inputs_of, open_output, predict
from results.sampled import ImageResult, settings_of, write_image
from results.shards import WAIT, agreed, last_share, open_folder, share_of
from results.summary import finish
from sampling.drawer import ROUND, Drawer, Timed, drawer_of, image_tensor, scene_groups, whole_draws, whole_moments
from sampling.loading import load_denoiser
from sampling.sampler import draws_of
from sampling.segmenter import Segmenter
from sampling.tiled import TiledDrawer, tiled_of
from utils.config import dump_config
from utils.data_schema import DataConfig
from utils.devices import choose_device, device_name, environment, own_device, peak_memory_mib
from utils.errors import UsageError
from utils.files import whole_file, write_json, write_text
from utils.locks import held
from utils.runs import checked_run, checkpoint_path, file_hash, folders_with, new_folder, newest_run
from utils.schema import Config
from utils.sections import EvaluationConfig, SamplingConfig
from utils.share import WHOLE, Share, torchrun_share

log = logging.getLogger("sample")


def draw_in_tiles(result: ImageResult, tiles: TiledDrawer) -> tuple[float, float]:
    """All draws of an image by overlapping tiles, as of pictures without masks: seconds, and evaluations for each draw.

    Raises UsageError for images too large to be one band, of whose draws nobody sees the whole.
    """
    scene, scoring = result.scene, 0.0
    height, width = scene.shape
    if not tiles.in_one_band(scene.shape):
        raise UsageError(f"sampling.tile: {scene.key} of {width} x {height} is too large to be scored by tiles; set it "
                         "to null, and data.test_patch where memory is short")  # fmt: skip
    planes = planes_of([scene.image])[0]

    def take(sdf: np.ndarray) -> None:
        nonlocal scoring
        begin = time.perf_counter()
        result.add(sdf, 0.0)
        scoring += time.perf_counter() - begin

    begin = time.perf_counter()
    (band,) = tiles(lambda window: planes[(slice(None), *window.slices)], scene.shape, scene.key, take)
    seconds = time.perf_counter() - begin - scoring
    if not result.draw_counts:
        result.set_moments(band.mmse, band.std)
    return seconds, band.nfe


def sample_group(
    drawer: Drawer,
    scenes: list[Scene],
    data: DataConfig,
    sampling: SamplingConfig,
    evaluation: EvaluationConfig,
    folder: Path,
) -> None:
    """All draws of a few images, and their files. With draws: auto, rounds of a few draws for every image whose MMSE
    map's standard error is above the tolerance. Images larger than sampling.tile, where it is set, are drawn one by one
    in tiles."""
    if sampling.tile:
        for scene in (scene for scene in scenes if max(scene.shape) > sampling.tile):
            result = ImageResult(drawer, scene, data, evaluation, sampling.save_draws)
            seconds, nfe = draw_in_tiles(result, tiled_of(sampling, drawer, sampling.tile))
            costs = {"nfe": nfe, "seconds": seconds, "peak_memory_mib": peak_memory_mib(drawer.device)}
            write_image(result, folder, costs)
        scenes = [scene for scene in scenes if max(scene.shape) <= sampling.tile]
    if not scenes:
        return
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


@dataclass(frozen=True)
class Request:
    """What is asked for. run: None for --weights. path: of the checkpoint. args: of the command. share: of images."""

    config: Config
    run: Path | None
    path: Path
    device: torch.device
    args: Any
    stop: StopFlag
    share: Share = WHOLE

    def drawer(self) -> Drawer:
        """An image in hand is dropped at a signal: nothing of it is written yet."""
        drawer = drawer_of(self.config, load_denoiser(self.config, self.path, self.device))
        drawer.before_evaluation = self.stop.raise_if_set
        return drawer

    def folder(self) -> Path:
        """That of the run; for weights that were trained elsewhere one for their samples, apart from trainings'."""
        if self.run is not None:
            return self.run
        root = Path("runs/weights")
        if self.args.resume:
            return newest_run(self.config.name, root)
        own, text = root / self.config.name, dump_config(self.config)
        with held(own / ".lock", str(own), WAIT):
            for run in reversed(folders_with(own, "config.yaml")) if self.share.count > 1 else ():
                if (run / "config.yaml").read_text() == text:
                    return run
            run = new_folder(own)
            write_text(run / "config.yaml", text)
        return run

    def facts(self, drawer: Drawer) -> dict[str, Any]:
        """What a summary says of how its results were made."""
        return {
            "sampler": self.config.sampling.sampler,
            "threshold": drawer.threshold,
            "device": device_name(drawer.device),
            "checkpoint": str(self.path),
            "seed": drawer.seed,
        }


def generate(request: Request) -> None:
    """Pairs, or images for the test masks, of a joint model."""
    config, args, stop = request.config, request.args, request.stop
    requests = (pair_requests if args.generate == "pairs" else image_requests)(config.data, args.count)
    drawer = request.drawer()
    settings = {**settings_of(config, request.path, "test"), "generate": args.generate, "count": args.count}
    with open_folder(request.folder(), settings, args.resume, "generated") as folder:
        with tqdm(total=len(requests), desc="generating", unit="image", disable=args.quiet) as bar:
            for made in write_samples(drawer, requests, config.data, folder):
                bar.update(made)
                stop.raise_if_set()
        write_json(folder / "environment.json", environment(drawer.device))
        nfe = drawer.evaluations or None  # none where all samples were there already
        facts = {"generated": args.generate, "nfe_per_sample": nfe, **request.facts(drawer)}
        summary = finish_samples(folder, requests, config.data, facts)
        print(f"{summary['samples']} {args.generate}, {summary['foreground']:.1%} foreground: {folder / 'sheet.png'}")


def sample(request: Request) -> None:
    """Draws of a split, and their scores."""
    config, args, stop = request.config, request.args, request.stop
    scenes = scenes_of(Split(config.data, args.split, instances=True))
    drawer = request.drawer()
    settings = settings_of(config, request.path, args.split)
    share = request.share
    with open_folder(request.folder(), settings, args.resume, share=share) as folder:
        at_once = ROUND if config.sampling.draws == "auto" else draws_of(config.sampling, drawer.denoiser)
        # Shares are of whole batches: in batches of other sizes draws may be rounded otherwise.
        most = agreed(folder, share, max(1, drawer.max_batch // at_once))
        batches = list(scene_groups(scenes, most))[share.rank :: share.count]
        own = sum(map(len, batches))
        log.info("%s: %d of %d images, %s draws each", folder, own, len(scenes), config.sampling.draws)
        bar = tqdm(total=own, desc="sampling", unit="image", disable=args.quiet)
        for group in batches:
            stop.raise_if_set()
            if not all((folder / scenes.keys[i] / "scores.json").is_file() for i in group):
                images = [scenes[i] for i in group]
                sample_group(drawer, images, config.data, config.sampling, config.evaluation, folder)
            bar.update(len(group))
        bar.close()
        stop.raise_if_set()
        with last_share(folder, share) as of_all:
            if of_all is None:
                print(done_line(share, folder))
                return
            if config.sampling.animate and not (folder / "trajectory.gif").is_file():
                animate(drawer, scenes[0].parts[0], folder / "trajectory.gif")
            stop.raise_if_set()
            write_json(folder / "environment.json", environment(drawer.device))
            facts = {"split": args.split, **request.facts(drawer)}
            summary, report = finish(folder, scenes, config, facts)
        print(
            f"MMSE of {summary['draws']:.4g} draws: F1 {summary['mmse']['f1']:.4f}, IoU {summary['mmse']['iou']:.4f}; "
            f"single draws: F1 {summary['single']['f1']:.4f}, IoU {summary['single']['iou']:.4f}\n"
            f"{summary['images']} images, {summary['nfe_per_draw']:.4g} evaluations per draw, "
            f"{summary['seconds_per_image']:.2f} s per image, {summary['peak_memory_mib']:.0f} MiB\n"
            f"report: {report}"
        )


def predict_all(segmenter: Segmenter, path: Path, args: Any, stop: StopFlag, share: Share) -> None:
    """--input and --output."""
    inputs, config = inputs_of(Path(args.input)), segmenter.config
    if config.sampling.large_maps == "zarr":
        zarr()
    output = Path(args.output) if args.output else new_folder(Path("predictions"))
    settings = {"checkpoint": file_hash(path), "sampling": config.sampling.model_dump(mode="json"), "seed": config.seed}
    if config.data.microns_per_pixel is not None:
        settings["microns_per_pixel"] = config.data.microns_per_pixel
    with open_output(output, settings, args.overwrite, args.resume, share):
        segmenter.drawer.before_evaluation = stop.raise_if_set
        own = len(inputs[share.rank :: share.count])
        with tqdm(total=own, desc="predicting", unit="image", unit_scale=True, disable=args.quiet) as bar:
            rows = predict(segmenter, inputs, output, stop.raise_if_set, bar.update, share)
        if rows is None:
            print(done_line(share, output))
            return
        write_json(output / "environment.json", environment(segmenter.drawer.device))
        written = [path for name in ("results.csv", "report.html") if (path := output / name).is_file()]
        print(f"{len(rows)} images: {', '.join(map(str, written))}")


def done_line(share: Share, folder: Path) -> str:
    return f"shard {share.rank + 1}/{share.count} of {folder} is done; the last one to be done writes its report"


def check_shares(args: Any, share: Share) -> None:
    """Raises UsageError where processes cannot share what is asked for, or would not find each other's results."""
    if share.count > 1 and args.generate:
        raise UsageError("--generate: is for one process")
    if share.count > 1 and args.overwrite:
        raise UsageError("--overwrite: not with several processes, who would remove each other's results")
    if args.input and not args.output and (args.resume or share.count > 1):
        which = "to go on with" if args.resume else "of all processes"
        raise UsageError(f"{'--resume' if args.resume else '--shard'} with --input needs --output, the folder of the "
                         f"results {which}")  # fmt: skip


def run_and_checkpoint(args: Any, name: str) -> tuple[Path | None, Path]:
    """The run folder, none for --weights, and the checkpoint. name: of the config."""
    if args.weights:
        return None, args.weights
    run = Path(args.run) if args.run else newest_run(name)
    return checked_run(run, "--run "), checkpoint_path(run, args.checkpoint)


def carry_out(config: Config, args: Any, stop: StopFlag) -> None:
    """args: of the command."""
    if args.generate:
        check_generation(config.model.kind, config.sampling.sampler, args.count)
    share = share_of(args.shard)
    check_shares(args, share)
    args.quiet |= torchrun_share().rank > 0
    device = choose_device(args.device) if args.shard or share.count == 1 else own_device(args.device)
    run, path = run_and_checkpoint(args, config.name)
    if args.input:
        predict_all(Segmenter.from_checkpoint(config, path, device), path, args, stop, share)
    else:
        (generate if args.generate else sample)(Request(config, run, path, device, args, stop, share))
