"""The sections of a config: types, ranges, defaults and what each key means (docs/config.md is made from this)."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from utils.data_schema import Float, Int, Section, Text, yaml_text

Prediction = Literal["edm", "x", "eps", "v", "velocity", "both", "score", "score_raw"]
WeightingName = Literal["score", "uniform", "edm", "snr_plus_one", "max_snr_one", "min_snr", "sigmoid", "velocity"]
SamplerName = Literal["pc", "euler_maruyama", "ancestral", "ddim", "euler", "heun", "dpm_solver", "adaptive", "mean",
                      "mc_dropout", "ensemble", "logits", "flowsdf_released"]  # fmt: skip
PREDICTIONS: tuple[str, ...] = get_args(Prediction)
WEIGHTINGS: tuple[str, ...] = get_args(WeightingName)
NOT_OF_DRAWS = ("threshold", "max_batch", "animate", "save_draws", "large_maps")  # of the sampling section
ONE_PASS = ("mean", "mc_dropout", "ensemble")  # samplers of the direct mean
STOCHASTIC = ("ssn", "prob_unet")  # kinds of models whose logits have a distribution, for sampler logits
SCHEDULES = ("cosine", "linear", "linear_simple", "parabola")  # processes that follow one
PARAMETERS = 1e9  # of one network at most: the weights, their average, gradients and moments take 20 GB


Count = Annotated[Int, Field(ge=1, le=10**5)]
Factors = Annotated[tuple[Annotated[Int, Field(ge=1)], ...], Field(max_length=8)]


def _model_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.]+", name):
        raise ValueError("a name is made of letters, digits, '.' and '_'")
    return name


class EncoderConfig(Section):
    """The image encoder, run once per image."""

    channels: Int = Field(32, ge=4, le=1024, description="channels of the finest level")
    multipliers: Factors = Field((1, 2, 2, 4), min_length=1, description="channels per level")
    blocks: Int = Field(1, ge=1, le=8, description="residual blocks per level and way")
    attention: Factors = Field((), description="down-sampling factors of the finest level with self-attention")

    @model_validator(mode="after")
    def _levels(self) -> EncoderConfig:
        factors = [2**i for i in range(len(self.multipliers))]
        if other := [factor for factor in self.attention if factor not in factors]:
            raise ValueError(f"attention: {other[0]} is no down-sampling factor of this network; one of {factors}")
        parameters = 45.0 * self.blocks * sum((self.channels * m) ** 2 for m in self.multipliers)  # 3x3 convolutions
        if parameters > PARAMETERS:
            raise ValueError(
                f"multipliers: {yaml_text(self.multipliers)} of channels: {self.channels} are about {parameters:.1g} "
                f"parameters, {PARAMETERS:.0e} is the limit"
            )
        return self


class ImageEncoderConfig(EncoderConfig):
    """The image encoder, run once per image."""

    kind: Literal["unet", "rrdb", "timm"] = Field(
        "unet",
        description="U-Net; FlowSDF's dense blocks at full resolution, which have channels and blocks only; or a "
        "network of timm, whose maps are brought to channels (models/pyramid.py; pip install timm)",
    )
    name: Annotated[str, AfterValidator(_model_name)] = Field(
        "resnet18", max_length=100, description="kind timm: one of timm.list_models(), also with a tag of weights"
    )
    pretrained: bool | Text = Field(
        False,
        description="kind timm: false: random weights; true: those that timm downloads; or a file of them, "
        ".safetensors or .pth",
    )
    frozen: bool = Field(
        False,
        description="kind timm: its weights and batch norms stay as they are; with pretrained, checkpoints leave them "
        "out",
    )


class ModelConfig(EncoderConfig):
    """The network that runs at every evaluation; its encoder below."""

    kind: Literal["conditional", "joint", "unet", "unetplusplus", "resunet", "attention_unet", "fcn", "ssn",
                  "prob_unet"] = Field(
        "conditional",
        description="masks given images; one network of both, p(m, x), without an image encoder; or a baseline that "
        "predicts the mask in one pass, trained by Dice and cross entropy (models/baselines.py): resunet and "
        "attention_unet have this section's sizes, unet and unetplusplus channels and multipliers of their decoder; "
        "ssn, a resunet, has a low-rank normal distribution of logits, trained by its likelihood (models/ssn.py); "
        "prob_unet, a resunet, has a latent z, a normal distribution given the image (models/prob_unet.py)",
    )  # fmt: skip
    rank: Int = Field(10, ge=0, le=100, description="kind ssn: factors of the logits' covariance besides its diagonal")
    latent: Int = Field(6, ge=1, le=1000, description="kind prob_unet: numbers in z")
    beta: Float = Field(
        10.0, gt=0, le=1e6, description="kind prob_unet: weight of KL(q || p) against cross entropy summed over pixels"
    )
    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101"] | None = Field(
        None, description="encoder of unet, unetplusplus (null: resnet34) and fcn (null: resnet50), without pretraining"
    )
    channels: Int = Field(32, ge=4, le=1024, description="channels of the finest level")
    unshuffle: Literal[1, 2, 4, 8] = Field(
        1,
        description="side of the blocks of pixels that are channels of the finest level, here and in the encoder: at 2 "
        "all is computed at half of the resolution, which is faster",
    )
    dropout: Float = Field(0.0, ge=0, lt=1, description="dropout in residual blocks")
    second_moment: bool = Field(False, description="also learn Var[m | x] at t = 1, for sampler: mean")
    raters: Int = Field(
        0,
        ge=0,
        le=1000,
        description="objective distribution: annotators that the network tells apart, where they are the same persons "
        "for all images, in one order: as many as the data have; 0: it does not",
    )
    encoder: ImageEncoderConfig = Field(default_factory=ImageEncoderConfig, description="the image encoder")

    @property
    def is_baseline(self) -> bool:
        return self.kind not in ("conditional", "joint")

    @property
    def usual_backbone(self) -> str:
        return "resnet50" if self.kind == "fcn" else "resnet34"

    @model_validator(mode="after")
    def _encoder_depth(self) -> ModelConfig:
        own, levels = len(self.multipliers), len(self.encoder.multipliers)
        if self.kind == "conditional" and self.encoder.kind == "unet" and levels < own:
            raise ValueError(f"encoder.multipliers: {levels} levels, the network needs at least its own {own}")
        return self


class SDEConfig(Section):
    """The process, what the network predicts, how errors are weighted."""

    process: Literal["ve", "vp", "cosine", "linear", "linear_simple", "parabola", "flow"] = Field(
        "ve",
        description="variance exploding; variance preserving with linear beta, or along a schedule from log-SNR 20 to "
        "-20; optimal-transport flow",
    )
    sigma_min: Float = Field(1e-3, ge=1e-6, description="VE, flow: smallest noise")
    sigma_max: Float = Field(5.0, gt=0, le=1e3, description="VE: largest noise")
    beta_min: Float = Field(0.1, ge=1e-3, le=100, description="VP: beta at t = 0")
    beta_max: Float = Field(20.0, ge=1e-3, le=100, description="VP: beta at t = 1")
    input_scale: Float = Field(1.0, ge=1e-3, le=1, description="schedules: b, the data's scale; less is more noise")
    prediction: Prediction = Field("edm", description="meaning of the raw network output (models/denoiser.py)")
    tanh: bool = Field(False, description="x, both: bound the predicted mask to [-sdf_scale, sdf_scale]")
    weighting: WeightingName = Field("score", description="w(t) of the loss (sde/loss.py); score is the SNR")
    sigmoid_shift: Float = Field(4.0, ge=-100, le=100, description="weighting sigmoid: k of sigmoid(log-SNR - k)")
    per_logsnr: bool = Field(False, description="weighting times -d log-SNR / dt: the same for any schedule")
    prior_share: Float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of a batch at t = 1 without noise, the direct mean; 1 is plain regression, or, for "
        "objective: distribution, draws in one evaluation",
    )
    objective: Literal["mean", "distribution"] = Field(
        "mean",
        description="what an evaluation gives: E[m | z_t, x]; or draws of p(m | z_t, x), by a second noise and a "
        "proper score (models/latent.py), and the mean as well",
    )
    mean_first: Float = Field(
        0.0, ge=0, lt=1, description="objective distribution: share of the steps, the first, that learn the mean only"
    )
    mask_weight: Float = Field(
        0.0,
        ge=0,
        le=100,
        description="what masks count beside SDFs, 3 say: the cross entropy of an output of their own, which only "
        "training sees, and with objective: distribution a CRPS of the masks of draws (sde/loss.py); sharper borders",
    )
    overlap: Float = Field(
        0.0,
        ge=0,
        le=10,
        description="objective distribution: what the overlap of masks, 1 - IoU, counts among the scores of draws; "
        "some for small, sparse objects, none for ones that touch (docs/results/raters.md)",
    )
    clean_share: Float = Field(
        0.0, ge=0, le=0.5, description="kind joint: share trained with a clean image, and as many with a clean mask"
    )

    @model_validator(mode="after")
    def _ordered(self) -> SDEConfig:
        if self.process == "ve" and self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min: {self.sigma_min} must be below sigma_max: {self.sigma_max}")
        if self.process == "flow" and self.sigma_min >= 1:
            raise ValueError(f"sigma_min: {self.sigma_min} must be below 1, the most noise of process: flow")
        if self.process == "vp" and self.beta_min > self.beta_max:
            raise ValueError(f"beta_min: {self.beta_min} must not exceed beta_max: {self.beta_max}")
        return self


class EMAConfig(Section):
    """Moving average of the weights, the ones that are sampled with."""

    kind: Literal["constant", "power"] = Field("constant", description="constant with warm-up, or a power of the step")
    decay: Float = Field(0.999, ge=0, lt=1, description="constant: decay per step, reached by (1 + n) / (10 + n)")
    gamma: Float = Field(6.94, gt=0, le=1e3, description="power: decay (1 - 1/n)^(gamma + 1)")


class TrainingConfig(Section):
    """Optimisation, checkpoints and logs."""

    steps: Int = Field(100_000, ge=1, le=10**9, description="optimiser steps")
    batch: Int = Field(16, ge=1, le=10**5, description="images per step")
    noises: Int = Field(1, ge=1, le=256, description="noise levels per image and step, on shared image features")
    start_from: Text | None = Field(
        None,
        description="averaged weights to begin with, of a regression or of other images say: a run folder, of which "
        "best.pt is taken, a checkpoint, or weights (.safetensors); what does not fit keeps its own start",
    )
    optimizer: Literal["adam", "adamw"] = Field("adam", description="Adam, or AdamW with decoupled decay")
    learning_rate: Float = Field(1e-4, gt=0, le=1, description="peak learning rate")
    encoder_rate: Float = Field(
        1.0, gt=0, le=1, description="encoder.kind timm: its own learning rate, as a share of the others'"
    )
    weight_decay: Float = Field(0.0, ge=0, le=10, description="of AdamW")
    warmup: Int = Field(0, ge=0, description="steps of linear learning-rate warm-up")
    schedule: Literal["constant", "cosine"] = Field("constant", description="after the warm-up; cosine ends at 0")
    clip: Float = Field(1.0, gt=0, description="largest gradient norm")
    ema: EMAConfig = Field(default_factory=EMAConfig, description="moving average of the weights")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on GPUs that have it")
    channels_last: bool = Field(True, description="memory layout of the convolutions")
    log_every: Int = Field(
        50, ge=1, description="steps between rows of metrics.csv, and at most until a loss that is not finite is found"
    )
    checkpoint_every: Int = Field(1000, ge=1, description="steps between checkpoints")
    validate_every: Int = Field(1000, ge=1, description="steps between validations by quick draws")
    keep: Int = Field(2, ge=1, description="numbered checkpoints kept, besides last.pt and best.pt")


class SamplingConfig(Section):
    """How draws are made and turned into maps."""

    sampler: SamplerName = Field(
        "pc",
        description="how noise becomes a draw (sde/samplers.py); mean: E[m | x] in one evaluation; mc_dropout: that "
        "with dropout; ensemble: that of several runs (models/pooled.py); logits: draws of model.kind: ssn, prob_unet",
    )
    members: Annotated[tuple[Text, ...], Field(max_length=100)] = Field(
        (),
        description="run folders whose networks make draws besides the run's own: ensemble: one each, others: in turn",
    )
    augment: bool = Field(
        False,
        description="draws see the image in turn flipped and turned in all ways that data.flips and data.rotations "
        "trained (test-time augmentation); mean: one draw in each way",
    )
    steps: Count = Field(400, description="evaluations per draw; pc: K (1 + corrector_steps); not for adaptive, mean")
    corrector_steps: Int = Field(1, ge=0, le=1000, description="pc: J, corrector steps per predictor step")
    r: Float = Field(0.15, gt=0, le=10, description="pc: signal-to-noise ratio of the corrector step")
    denoise_last: bool = Field(False, description="pc: leave out the noise of the last update")
    eta: Float = Field(0.0, ge=0, le=1, description="ddim: 0 is the flow's Euler rule, 1 ancestral DDPM")
    variance: Literal["small", "large"] = Field("small", description="ancestral: which of DDPM's two variances")
    order: Literal[1, 2] = Field(2, description="dpm_solver: 2 also uses the evaluation before")
    stochastic: bool = Field(False, description="dpm_solver: follow the reverse SDE")
    tolerance: Float = Field(1e-4, gt=0, lt=1, description="adaptive: relative and absolute error of a step")
    grid: Literal["time", "logsnr", "rho"] | None = Field(
        None,
        description="what is even between steps; null: rho for heun and euler, time for ddim, logsnr for ancestral, "
        "dpm_solver and euler_maruyama; pc has time",
    )
    spread: Annotated[Float, Field(ge=0, le=10)] | Literal["auto"] = Field(
        "auto",
        description="draws in one evaluation: their distance from the direct mean times this; auto: what the "
        "checkpoint's validation chose, kept in it",
    )
    rater: Annotated[Int, Field(ge=0)] | None = Field(
        None, description="draw as this one of model.raters would, counted from 0; null: as each of them in turn"
    )
    rho: Float = Field(7.0, ge=1, le=100, description="grid rho: exponent of the noise")
    noise: Literal["independent", "antithetic"] = Field(
        "independent", description="how the first noise is spread over the draws of an image (sde/noise.py)"
    )
    draws: Count | Literal["auto"] = Field(
        128, description="draws per image; auto: until the MMSE map's standard error is below standard_error"
    )
    standard_error: Float = Field(0.02, gt=0, description="draws auto: root mean square over pixels, in SDF units")
    most_draws: Count = Field(128, description="draws auto: at most these")
    threshold: Float | Literal["paper"] | None = Field(
        None,
        description="SDF units; below is foreground. paper: 3 times the noise left; null: that, but no less than the "
        "border's 0.5 / data.truncation",
    )
    max_batch: Count | None = Field(
        None,
        description="draws or tiles evaluated at once; null: 64 on GPUs, on CPUs 16 or 2^17 pixels; "
        "halved when out of memory",
    )
    tile: Int | None = Field(
        None,
        ge=16,
        le=4096,
        description="side of the overlapping tiles that larger images are drawn by, in pixels; null: the training size "
        "for pictures of --input, and validation and test images without tiles",
    )
    tile_overlap: Float = Field(
        0.25, ge=0, le=0.5, description="whole images: smallest share of a tile that overlaps its neighbour"
    )
    skip_glass: bool = Field(
        False, description="whole images: take bright tiles, empty glass under H&E, for background and leave them out"
    )
    animate: bool = Field(True, description="write a GIF of one draw of the first image")
    large_maps: Literal["tiff", "zarr"] = Field(
        "tiff",
        description="maps of pictures above 16 megapixels: OME-TIFF pyramids, or instead one OME-Zarr store (extra: "
        "slides)",
    )
    save_draws: bool = Field(False, description="keep every draw, as draws.npz per image")

    @model_validator(mode="after")
    def _whole_steps(self) -> SamplingConfig:
        each = 1 + self.corrector_steps
        if self.sampler == "pc" and self.steps % each:
            raise ValueError(f"steps: {self.steps} is not a multiple of 1 predictor + {self.corrector_steps} corrector")
        if self.sampler == "ensemble" and not self.members:
            raise ValueError("sampler: ensemble needs members, the run folders of the other networks")
        return self

    @property
    def used_grid(self) -> str:
        """What is even between the steps of samplers that have a choice."""
        usual = {"heun": "rho", "euler": "rho", "ddim": "time"}
        return self.grid or usual.get(self.sampler, "logsnr")


class EvaluationConfig(Section):
    """Quick validation draws during training; what is reported of samples."""

    images: Int = Field(16, ge=1, description="validation images drawn at each validation")
    draws: Count = Field(4, description="draws per validation image")
    steps: Count = Field(
        10, description="evaluations per validation draw of objective: mean, by dpm_solver with stochastic: true"
    )
    choose_by: Literal["energy", "f1"] | None = Field(
        None,
        description="what the best checkpoint has: the least fair energy score of draws, or the largest F1 of their "
        "mean; null: energy, and f1 where there are no draws",
    )
    object_depth: Float = Field(
        0.1, ge=0, description="SDF units; objects whose minima lie this far below their pass are told apart, 0: never"
    )
    object_area: Int = Field(10, ge=0, description="pixels; smaller objects are left out")
    missed: Float = Field(0.1, gt=0, lt=1, description="share of foreground that risk control may miss on average")
