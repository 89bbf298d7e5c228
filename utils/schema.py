"""The sections of a config: types, ranges, defaults and what each key means (docs/config.md is made from this)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a number is expected")
    return value


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool)]


class Section(BaseModel):
    """A part of the config: unknown keys are refused, infinities and NaN too."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PhantomConfig(Section):
    """The embedded procedural data set."""

    train: Int = Field(120, ge=1, description="training images")
    val: Int = Field(20, ge=1, description="validation images")
    test: Int = Field(60, ge=1, description="test images")
    size: Int = Field(64, ge=32, le=2048, description="height and width in pixels")
    objects: Literal["glands", "nuclei", "glands_and_lumina"] = Field(
        "glands", description="what the mask shows; glands_and_lumina: classes 1 (wall) and 2 (lumen)"
    )
    raters: Int = Field(0, ge=0, le=64, description="disagreeing annotators, 0 for none")
    seed: Int = Field(0, ge=0, description="seed of the pictures")


Pair = tuple[Int, Int]


class AugmentConfig(Section):
    """Random changes of training pairs besides flips and turns; 0 is off, each value is the largest change."""

    brightness: Float = Field(0.0, ge=0, le=1, description="added, as a share of the grey range")
    contrast: Float = Field(0.0, ge=0, lt=1, description="relative change around the mean grey value")
    gamma: Float = Field(0.0, ge=0, lt=1, description="exponent 1 / (1 + gamma) to 1 + gamma")
    blur: Float = Field(0.0, ge=0, le=10, description="standard deviation of a Gaussian in pixels")
    noise: Float = Field(0.0, ge=0, le=1, description="standard deviation as a share of the grey range")
    stain: Float = Field(0.0, ge=0, lt=1, description="relative change of either stain's density (color: rgb)")
    scale: Float = Field(0.0, ge=0, lt=1, description="zoom by 1 / (1 + scale) to 1 + scale; SDF computed anew")
    rotate: Float = Field(0.0, ge=0, le=180, description="degrees; SDF computed anew")
    elastic: Float = Field(0.0, ge=0, le=20, description="displacements in pixels; SDF computed anew")


class DataConfig(Section):
    """From a raw archive to prepared patches."""

    source: Literal["phantom", "glas", "monuseg", "lidc", "dsb2018", "folder", "prepared"] = Field(
        "prepared", description="archive format; `prepared`: root holds CSV files already"
    )
    raw: str | None = Field(None, description="folder of the unpacked archive")
    root: str = Field(description="folder of the prepared data")
    size: Pair | None = Field(None, description="[height, width] to resize to, null to keep")
    color: Literal["grey", "rgb"] = Field("grey", description="colour of the conditioning image")
    stain: Literal["none", "macenko", "vahadane"] = Field("none", description="stain normalisation of H&E images")
    stain_target: str | None = Field(
        None, description="image of the archive, or a file, to normalise to; null: the most typical training image"
    )
    stretch: bool = Field(
        False, description="bring each image's 0.1th and 99.9th percentile to 0 and 255, as for dark fluorescence"
    )
    truncation: Float = Field(15.0, gt=0, description="delta of eq. 1, in pixels of the prepared image")
    sdf_scale: Float = Field(1.0, gt=0, description="the model sees the SDF in [-sdf_scale, sdf_scale]")
    patch: Pair | None = Field(None, description="[height, width] of overlapping training patches; null: whole images")
    stride: Pair | None = Field(None, description="largest distance of training patches; null: half of patch")
    test_patch: Pair | None = Field(
        None, description="validation and test images are cut into even parts no larger, put together before scoring"
    )
    crop: Pair | None = Field(
        None, description="train on random crops of [height, width]; validation and test images are cut to a fixed one"
    )
    classes: tuple[Int, ...] | None = Field(
        None, min_length=2, max_length=32, description="mask values that are classes, each with an SDF of its own"
    )
    foreground: tuple[Int, ...] | None = Field(
        None, min_length=1, description="folder: mask values that are foreground; null: all but 0"
    )
    instances: bool | None = Field(
        None, description="folder: mask values number the objects; null: they do in labels/, not in masks/"
    )
    window: tuple[Float, Float] | None = Field(
        None, description="folder: raw intensities that become 0 and 255; null: 8 bits as they are, else percentiles"
    )
    group_column: str = Field("group", description="folder: column of split.csv with what a split keeps together")
    max_megapixels: Float = Field(100.0, gt=0, le=2000, description="largest raw image")
    validation_fraction: Float = Field(0.15, ge=0, lt=1, description="training images moved to val, by patient")
    test_fraction: Float | None = Field(
        None, ge=0, lt=1, description="moved to test where the archive has none; null: 0.2 for lidc, dsb2018, folder"
    )
    split_seed: Int = Field(0, ge=0, description="seed of the splits")
    allow_partial: bool = Field(False, description="accept an archive that lacks images of the official split")
    workers: Int = Field(0, ge=0, description="processes for preparation, 0 for all cores")
    flips: bool = Field(True, description="random horizontal and vertical flips in training")
    rotations: bool = Field(False, description="random 90-degree turns in training")
    augment: AugmentConfig = Field(default_factory=AugmentConfig, description="random changes in training")
    phantom: PhantomConfig = Field(default_factory=PhantomConfig, description="options of source: phantom")

    @property
    def channels(self) -> int:
        """SDF channels."""
        return len(self.classes) if self.classes else 1

    @property
    def has_official_split(self) -> bool:
        return self.source in ("phantom", "glas", "monuseg")

    @model_validator(mode="after")
    def _raw_given(self) -> DataConfig:
        if self.source not in ("phantom", "prepared") and self.raw is None:
            raise ValueError(f"source: {self.source} needs data.raw, the folder of the unpacked archive")
        return self

    @model_validator(mode="after")
    def _sizes(self) -> DataConfig:
        for name in ("size", "patch", "test_patch", "crop"):
            value = getattr(self, name)
            if value is not None and min(value) < 8:
                raise ValueError(f"{name}: {list(value)} is smaller than 8 pixels")
        if self.stride is not None and (self.patch is None or min(self.stride) < 1):
            raise ValueError(f"stride: {list(self.stride)} needs data.patch and at least 1 pixel")
        if self.crop is not None and self.test_patch is not None:
            raise ValueError("test_patch: does not go with data.crop, which cuts test images already")
        for inner, outer in (("patch", "size"), ("test_patch", "size"), ("crop", "size"), ("crop", "patch")):
            small, large = getattr(self, inner), getattr(self, outer)
            if small and large and (small[0] > large[0] or small[1] > large[1]):
                raise ValueError(f"{inner}: {list(small)} is larger than data.{outer}: {list(large)}")
        return self

    @model_validator(mode="after")
    def _values(self) -> DataConfig:
        if self.source != "folder":
            for name in ("foreground", "instances", "window"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: is for source: folder, not {self.source}")
        if self.classes is not None:
            if len(set(self.classes)) < len(self.classes) or not all(1 <= c <= 255 for c in self.classes):
                raise ValueError(f"classes: {list(self.classes)} must be different values from 1 to 255")
            two_classes = self.source == "phantom" and self.phantom.objects == "glands_and_lumina"
            if self.source not in ("folder", "prepared") and not two_classes:
                raise ValueError(f"classes: source: {self.source} has objects of one kind only")
            if self.foreground is not None:
                raise ValueError("foreground: does not go with data.classes, which are the foreground")
            if self.source == "phantom" and self.phantom.raters:
                raise ValueError("classes: do not go with phantom.raters, whose masks have one class")
        if self.foreground is not None and min(self.foreground) < 1:
            raise ValueError(f"foreground: {list(self.foreground)} must be values from 1 on; 0 is background")
        if self.window is not None and self.window[0] >= self.window[1]:
            raise ValueError(f"window: {list(self.window)} must be [low, high]")
        if self.augment.stain and self.color == "grey":
            raise ValueError("augment.stain: needs data.color: rgb")
        return self


class EncoderConfig(Section):
    """The image encoder, run once per image."""

    channels: Int = Field(32, ge=4, le=1024, description="channels of the finest level")
    multipliers: tuple[Int, ...] = Field((1, 2, 2, 4), min_length=1, max_length=8, description="channels per level")
    blocks: Int = Field(1, ge=1, le=8, description="residual blocks per level and way")
    attention: tuple[Int, ...] = Field((), description="down-sampling factors with self-attention")

    @model_validator(mode="after")
    def _levels(self) -> EncoderConfig:
        factors = [2**i for i in range(len(self.multipliers))]
        for factor in self.attention:
            if factor not in factors:
                raise ValueError(f"attention: {factor} is no down-sampling factor of this network; one of {factors}")
        if min(self.multipliers) < 1:
            raise ValueError("multipliers: all must be at least 1")
        return self


class ModelConfig(EncoderConfig):
    """The network that runs at every evaluation; its encoder below."""

    channels: Int = Field(32, ge=4, le=1024, description="channels of the finest level")
    dropout: Float = Field(0.0, ge=0, lt=1, description="dropout in residual blocks")
    encoder: EncoderConfig = Field(default_factory=EncoderConfig, description="the image encoder")

    @model_validator(mode="after")
    def _encoder_depth(self) -> ModelConfig:
        if len(self.encoder.multipliers) < len(self.multipliers):
            raise ValueError(
                f"encoder.multipliers: {len(self.encoder.multipliers)} levels, "
                f"the network needs at least its own {len(self.multipliers)}"
            )
        return self


class SDEConfig(Section):
    """The process, what the network predicts, how errors are weighted."""

    process: Literal["ve", "vp", "cosine", "flow"] = Field(
        "ve",
        description="variance exploding, variance preserving with linear or cosine schedule, optimal-transport flow",
    )
    sigma_min: Float = Field(1e-3, gt=0, description="VE, flow: least noise")
    sigma_max: Float = Field(5.0, gt=0, description="VE: most noise")
    beta_min: Float = Field(0.1, gt=0, description="VP: beta at t = 0")
    beta_max: Float = Field(20.0, gt=0, description="VP: beta at t = 1")
    input_scale: Float = Field(1.0, gt=0, le=1, description="cosine: b, the data's scale; less is more noise")
    prediction: Literal["edm", "x", "eps", "v", "velocity", "score", "score_raw"] = Field(
        "edm", description="meaning of the raw network output (models/denoiser.py)"
    )
    weighting: Literal["score", "uniform", "edm"] = Field("score", description="w(t) of the loss (sde/loss.py)")
    prior_share: Float = Field(0.0, ge=0, le=1, description="share of every batch trained at t = 1")

    @model_validator(mode="after")
    def _ordered(self) -> SDEConfig:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min: {self.sigma_min} must be below sigma_max: {self.sigma_max}")
        if self.beta_min > self.beta_max:
            raise ValueError(f"beta_min: {self.beta_min} must not exceed beta_max: {self.beta_max}")
        return self


class EMAConfig(Section):
    """Moving average of the weights, the ones that are sampled with."""

    kind: Literal["constant", "power"] = Field(
        "constant", description="constant decay with warm-up, or a power of the step"
    )
    decay: Float = Field(0.999, ge=0, lt=1, description="constant: decay per step, reached by (1 + n) / (10 + n)")
    gamma: Float = Field(6.94, gt=0, description="power: decay (1 - 1/n)^(gamma + 1)")


class TrainingConfig(Section):
    """Optimisation, checkpoints and logs."""

    steps: Int = Field(100_000, ge=1, description="optimiser steps")
    batch: Int = Field(16, ge=1, description="images per step")
    noises: Int = Field(1, ge=1, le=256, description="noise levels per image and step, on shared image features")
    optimizer: Literal["adam", "adamw"] = Field("adam", description="Adam, or AdamW with decoupled decay")
    learning_rate: Float = Field(1e-4, gt=0, description="peak learning rate")
    weight_decay: Float = Field(0.0, ge=0, description="of AdamW")
    warmup: Int = Field(0, ge=0, description="steps of linear learning-rate warm-up")
    schedule: Literal["constant", "cosine"] = Field("constant", description="after the warm-up; cosine ends at 0")
    clip: Float = Field(1.0, gt=0, description="largest gradient norm")
    ema: EMAConfig = Field(default_factory=EMAConfig, description="moving average of the weights")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on GPUs that have it")
    channels_last: bool = Field(True, description="memory layout of the convolutions")
    log_every: Int = Field(50, ge=1, description="steps between rows of metrics.csv")
    checkpoint_every: Int = Field(1000, ge=1, description="steps between checkpoints")
    validate_every: Int = Field(1000, ge=1, description="steps between validations by quick draws")
    keep: Int = Field(2, ge=1, description="numbered checkpoints kept, besides last.pt and best.pt")

    @model_validator(mode="after")
    def _decay_used(self) -> TrainingConfig:
        if self.weight_decay and self.optimizer == "adam":
            raise ValueError("weight_decay: is for optimizer: adamw, not adam")
        return self


class SamplingConfig(Section):
    """How draws are made and turned into maps."""

    sampler: Literal["pc", "heun", "ddim", "dpm_solver"] = Field(
        "pc", description="predictor-corrector, probability-flow Heun, DDIM, DPM-Solver++(2M)"
    )
    steps: Int = Field(400, ge=1, description="network evaluations per draw; pc: K (1 + corrector_steps)")
    corrector_steps: Int = Field(1, ge=0, description="pc: J, corrector steps per predictor step")
    r: Float = Field(0.15, gt=0, description="pc: signal-to-noise ratio of the corrector step")
    denoise_last: bool = Field(False, description="pc: leave out the noise of the last update")
    eta: Float = Field(0.0, ge=0, le=1, description="ddim: 0 is the flow's Euler rule, 1 ancestral DDPM")
    grid: Literal["time", "logsnr", "rho"] | None = Field(
        None, description="not pc: what is even between steps; null: rho for heun, time for ddim, logsnr for dpm_solver"
    )
    rho: Float = Field(7.0, gt=0, description="grid rho: exponent of the noise")
    draws: Int = Field(128, ge=1, description="draws per image")
    threshold: Float | None = Field(
        None, description="SDF units; below is foreground. null: 3 times the residual noise"
    )
    max_batch: Int | None = Field(None, ge=1, description="draws evaluated at once; null: 64 on GPUs, 16 on CPUs")
    animate: bool = Field(True, description="write a GIF of one draw of the first image")
    save_draws: bool = Field(False, description="keep every draw, as draws.npz per image")

    @model_validator(mode="after")
    def _whole_steps(self) -> SamplingConfig:
        each = 1 + self.corrector_steps
        if self.sampler == "pc" and self.steps % each:
            raise ValueError(f"steps: {self.steps} is not a multiple of 1 predictor + {self.corrector_steps} corrector")
        if self.sampler == "pc" and self.grid not in (None, "time"):
            raise ValueError(f"grid: {self.grid} is not for sampler: pc, whose steps are even in time (Algorithm 1)")
        if self.sampler != "ddim" and self.eta:
            raise ValueError(f"eta: {self.eta} is for sampler: ddim, not {self.sampler}")
        return self


class EvaluationConfig(Section):
    """Quick validation draws during training."""

    images: Int = Field(16, ge=1, description="validation images drawn at each validation")
    draws: Int = Field(2, ge=1, description="draws per validation image")
    steps: Int = Field(9, ge=1, description="Heun evaluations per validation draw")


class Config(Section):
    """A whole experiment."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder under runs/")
    seed: Int = Field(0, ge=0, lt=2**63, description="seed of training and sampling")
    data: DataConfig
    model: ModelConfig = Field(default_factory=ModelConfig)
    sde: SDEConfig = Field(default_factory=SDEConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
