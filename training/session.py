"""A training: data, network and optimiser of a config, and its steps until the last one or a signal."""

from __future__ import annotations

from utils.command import StopFlag

import argparse
import logging
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from data.batches import Batches, InMemory, Mapped, representation_of
from data.dataset import DataState, data_state, image_array, rater_counts, sdf_array
from data.description import check_chosen, read_description
from data.packed import Packed, common_size, open_training
from data.rows import Patch
from models.build import denoiser_of, placed, warn_of_direct, warn_of_prior
from models.pyramid import PyramidEncoder, source_weights
from training.losses import rms_of_images
from training.parallel import ALONE, Team, joined
from training.recorder import Recorder, Taken
from training.state import TrainingState, checked_resume, last_good, save_state, start_from, weights_to_start_from
from training.validation import chosen_of, validate
from utils.config import dump_config
from utils.data_schema import DataConfig
from utils.devices import environment
from utils.errors import UsageError
from utils.files import naming, remove_leftovers, write_json, write_text
from utils.locks import held
from utils.reading import checked
from utils.runs import log_to_file, new_folder
from utils.schema import Config
from utils.sections import ImageEncoderConfig, SDEConfig, TrainingConfig
from utils.shipped import weights_file
from utils.weights import Images

log = logging.getLogger("main")


def source_of(patches: Sequence[Patch], scale: float) -> Mapped | InMemory:
    """Where batches come from; scale: of the SDFs. In memory it is on the host."""
    if isinstance(patches, Packed):
        return Mapped(patches, scale)
    sdfs, counts = sdf_array(patches) * scale, rater_counts(patches)
    return InMemory(torch.from_numpy(image_array(patches)), torch.from_numpy(sdfs), torch.from_numpy(counts))


def check_sources(encoder: ImageEncoderConfig, start: str | None) -> None:
    """Raises UsageError or CheckpointError for weights to begin with that cannot be had. start: a file, or none."""
    if encoder.pretrained is not False:
        source_weights(encoder.name, encoder.pretrained)
    if start:
        weights_to_start_from(weights_file(start))


def build_state(
    config: Config, patches: Sequence[Patch], device: torch.device, team: Team = ALONE, *, begins: bool = True
) -> TrainingState:
    """Network, optimiser and data, all seeded, alike in all processes of a team. begins: with training.start_from.
    Raises UsageError if the images are smaller than the crops."""
    size = common_size(patches, "train.csv")
    if (crop := config.data.crop) is not None and (crop[0] > size[0] or crop[1] > size[1]):
        raise UsageError(f"data.crop: {list(crop)} is larger than the prepared images, {list(size)}")
    torch.manual_seed(config.seed)
    source = source_of(patches, config.data.sdf_scale)
    if (raters := config.model.raters) and (others := (source.counts != raters).nonzero()[:, 0]).numel():
        first = int(others[0])
        raise UsageError(f"model.raters: {raters}, but {patches[first].filename} has {source.counts[first]}")
    binary = config.data.representation == "binary"
    sigma_data = config.data.sdf_scale if binary else source.mean_square() ** 0.5
    sigma_image = rms_of_images(patches) if config.model.kind == "joint" else 0.5  # nobody else asks
    model = denoiser_of(config, sigma_data, sigma_image)
    if isinstance(model.encoder, PyramidEncoder):
        model.encoder.load_source()
    begins_with = config.training.start_from if begins else None
    start = start_from(model, weights_file(begins_with)) if begins_with else []
    model = team.prepared(placed(model, device, config.training.channels_last))
    batches = Batches(source.placed(device), config.training.batch, config.seed, device, config.data, team.share)
    target = read_description(Path(config.data.root)).get("stain_target")
    known = checked({"size": list(crop or size), "stain_target": target}, Images, f"{config.data.root}/dataset.json")
    state = TrainingState(model, config.training, batches, config.seed, known, team)
    state.start = start
    return state


def training_step(state: TrainingState, data: DataConfig, sde: SDEConfig, settings: TrainingConfig) -> Taken:
    """One optimiser step. The host does not wait for the device: it looks at nothing of what it gives before
    `read_steps`."""
    batch = state.batches.next()
    batch = batch._replace(m=representation_of(batch.m, data), pixel=data.sdf_scale / data.truncation)
    losses, t = state.losses_of(batch, state.generators, sde, settings, state.step)
    state.optimizer.zero_grad(set_to_none=True)
    state.team.mean(losses).backward()
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), settings.clip)
    state.optimizer.step()
    state.schedule.step()
    state.average.update()
    state.step += 1
    return Taken(state.step, batch.indices, losses.detach(), t, norm)


def is_read(settings: TrainingConfig, step: int) -> bool:
    """Whether what steps have given is looked at after this one: for a row, a validation or a checkpoint."""
    every = (settings.log_every, settings.validate_every, settings.checkpoint_every, settings.steps)
    return any(step % steps == 0 for steps in every)


def read_steps(taken: list[Taken], team: Team, patches: Sequence[Patch], checkpoints: Path) -> list[Taken]:
    """The steps since the last reading, on the host; `taken` is empty then. Raises UsageError for the first whose loss
    or gradient is not finite."""
    steps = team.read(taken)
    taken.clear()
    for step in steps:
        loss, norm = step.losses.mean(), step.norm
        if not torch.isfinite(loss + norm):
            names = ", ".join(patches[i].filename for i in step.indices)
            raise UsageError(
                f"step {step.number}: the loss is {loss.item():g}, its gradient norm {norm.item():g}; batch: {names}; "
                f"{last_good(checkpoints)}"
            )
    return steps


def train(config: Config, run: Path, state: TrainingState, training: Sequence[Patch], validation: Sequence[Patch],
          stop: StopFlag, quiet: bool) -> None:  # fmt: skip
    """Steps, log rows, validations and checkpoints until training.steps or a signal."""
    settings, checkpoints = config.training, run / "checkpoints"
    threading.excepthook = lambda _: None  # what its thread raises the writer raises here, too
    writer = SummaryWriter(str(run / "tensorboard"), purge_step=state.step + 1)
    recorder = Recorder(run / "metrics.csv", writer, state.step, state.since_row)
    bar = tqdm(total=settings.steps, initial=state.step, desc="training", unit="step", disable=quiet)
    taken: list[Taken] = []
    seconds = 0.0

    def read() -> None:
        nonlocal seconds
        begin = time.perf_counter()
        steps = read_steps(taken, state.team, training, checkpoints)
        recorder.add(steps, settings.batch, seconds + time.perf_counter() - begin)
        seconds = 0.0

    while state.step < settings.steps and not state.team.stopped(stop):
        begin = time.perf_counter()
        taken.append(training_step(state, config.data, config.sde, settings))
        seconds += time.perf_counter() - begin
        if is_read(settings, state.step):
            read()
        bar.update()
        last = state.step == settings.steps
        if last or state.step % settings.log_every == 0:
            bar.set_postfix(recorder.write_row(state.step, float(state.schedule.get_last_lr()[0])), refresh=False)
        due = validation and (last or state.step % settings.validate_every == 0)
        improved = False
        if due:
            denoiser = state.average.module
            scores, pictures = validate(config, denoiser, validation)
            recorder.write_validation(state.step, scores)
            rows = pictures.unflatten(0, (-1, 3))  # three pictures each
            writer.add_image("validation", rows.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2), state.step)
            state.model.spread.copy_(denoiser.spread)
            by_f1 = config.evaluation.choose_by == "f1" or not (config.evaluation.choose_by or config.has_draws)
            score = -scores["val_f1"] if by_f1 else scores["val_energy"]
            if improved := score < state.best:
                state.best, state.best_f1 = score, scores["val_f1"]
            log.info("step %d: validation F1 %.4f, energy score %.4f%s", state.step, scores["val_f1"],
                     scores["val_energy"], " (best)" if improved else "")  # fmt: skip
        if due or last or state.step % settings.checkpoint_every == 0:
            save_state(state, config, checkpoints, best=improved or (last and not validation))
    if taken:
        read()
    if stop():
        save_state(state, config, checkpoints, best=False)
    bar.close()
    writer.close()


def follow(state: TrainingState, data: DataConfig, sde: SDEConfig, settings: TrainingConfig, patches: Sequence[Patch],
           checkpoints: Path, stop: StopFlag) -> None:  # fmt: skip
    """The steps of `train`, of a process that leaves all else to the first one."""
    taken: list[Taken] = []
    while state.step < settings.steps and not state.team.stopped(stop):
        taken.append(training_step(state, data, sde, settings))
        if is_read(settings, state.step):
            read_steps(taken, state.team, patches, checkpoints)
    read_steps(taken, state.team, patches, checkpoints)


def lead(config: Config, resumed: Path | None, known: DataState, state: TrainingState, training: Sequence[Patch],
         validation: Sequence[Patch], stop: StopFlag, quiet: bool) -> None:  # fmt: skip
    """The training of the process that holds the run folder. known: the `data_state`."""
    run = resumed or new_folder(Path("runs") / config.name)
    with held(run / ".lock", str(run)), naming(run):
        if resumed:
            checked_resume(run, config, known, state)
            remove_leftovers(run)
        (run / "checkpoints").mkdir(exist_ok=True)
        several = {"processes": processes} if (processes := state.team.share.count) > 1 else {}
        write_text(run / "config.yaml", dump_config(config))
        write_json(run / "environment.json", {**environment(state.device), **several, **known})
        log_to_file(run)
        count = sum(p.numel() for p in state.model.parameters())
        log.info("run %s: %d training, %d validation images, %.2f M parameters, %s, from step %d", run, len(training),
                 known["images"]["val"], count / 1e6, state.device, state.step)  # fmt: skip
        for line in state.start:
            log.info(line)
        if not config.is_one_pass:
            warn_of_prior(state.model, state.images["size"])
        warn_of_direct(state.model)
        with nullcontext() if quiet else logging_redirect_tqdm():
            train(config, run, state, training, validation, stop, quiet)
    if not stop():
        print(f"trained {state.step} steps, best validation F1 {max(state.best_f1, 0):.4f}: {run}")


def run_training(config: Config, resumed: Path | None, args: argparse.Namespace, stop: StopFlag) -> None:
    """A new run, or the rest of one; args: those of the command."""
    with joined(args.device, config.training.batch) as (team, device):
        begins = resumed is None or not (resumed / "checkpoints" / "last.pt").is_file()
        with torch.device("meta"):  # what can be refused is refused before data are read
            denoiser_of(config)
        check_sources(config.model.encoder, config.training.start_from if begins else None)
        if resumed is None:
            check_chosen(config.data)
        training, validation = open_training(config.data, stop.raise_if_set)
        known = data_state(config.data, training, validation)
        validation = chosen_of(validation, config.evaluation.images)  # all that is kept of them
        state = build_state(config, training, device, team, begins=begins)
        if team.leads:
            lead(config, resumed, known, state, training, validation, stop, args.quiet)
        else:
            if resumed:
                checked_resume(resumed, config, known, state)
            checkpoints = Path(resumed or "nowhere", "checkpoints")
            follow(state, config.data, config.sde, config.training, training, checkpoints, stop)
    stop.raise_if_set()
