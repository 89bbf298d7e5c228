"""The data section of a config: types, ranges, defaults and what each key means."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from utils.errors import cut


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a number is expected")
    return value


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("a path has no such characters")
    return text


def yaml_text(value: object) -> str:
    """A value as a config says it, cut where it is long."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return cut(list(value) if isinstance(value, tuple) else value)


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool)]
Text = Annotated[str, AfterValidator(_printable), Field(min_length=1, max_length=1000)]


class Section(BaseModel):
    """A part of the config: unknown keys are refused, infinities and NaN too."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PhantomConfig(Section):
    """The embedded procedural data set."""

    train: Int = Field(120, ge=1, le=10**6, description="training images")
    val: Int = Field(20, ge=1, le=10**6, description="validation images")
    test: Int = Field(60, ge=1, le=10**6, description="test images")
    size: Int = Field(64, ge=32, le=2048, description="height and width in pixels")
    objects: Literal["glands", "nuclei", "glands_and_lumina"] = Field(
        "glands", description="what the mask shows; glands_and_lumina: classes 1 (wall) and 2 (lumen)"
    )
    raters: Int = Field(0, ge=0, le=64, description="disagreeing annotators, 0 for none")
    seed: Int = Field(0, ge=0, lt=2**63, description="seed of the pictures")


Pair = tuple[Annotated[Int, Field(ge=1, le=2**15)], Annotated[Int, Field(ge=1, le=2**15)]]


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
    elastic: Float = Field(0.0, ge=0, le=20, description="displacements, about 5 pixels at most; SDF computed anew")


class DataConfig(Section):
    """From a raw archive to prepared patches."""

    source: Literal["phantom", "glas", "monuseg", "lidc", "dsb2018", "folder", "prepared"] = Field(
        "prepared", description="archive format; `prepared`: root holds CSV files already"
    )
    raw: Text | None = Field(None, description="folder of the unpacked archive")
    root: Text = Field(description="folder of the prepared data")
    size: Pair | None = Field(None, description="[height, width] to resize to, null to keep")
    microns_per_pixel: Float | None = Field(
        None,
        gt=0,
        le=25,
        description="pixel size of the training images in micrometres; pictures of sample.py --input that state "
        "another are resized to it; null: pixel sizes play no part",
    )
    color: Literal["grey", "rgb"] = Field("grey", description="colour of the conditioning image")
    stain: Literal["none", "macenko", "vahadane"] = Field("none", description="stain normalisation of H&E images")
    stain_target: Text | None = Field(
        None, description="image of the archive, or a file, to normalise to; null: the most typical training image"
    )
    stretch: bool = Field(
        False, description="bring each image's 0.1th and 99.9th percentile to 0 and 255, as for dark fluorescence"
    )
    truncation: Float = Field(15.0, gt=0, le=10**4, description="delta of eq. 1, in pixels of the prepared image")
    sdf_scale: Float = Field(1.0, ge=1e-3, le=1e3, description="the model sees the SDF in [-sdf_scale, sdf_scale]")
    representation: Literal["sdf", "binary"] = Field(
        "sdf", description="what is carried by the process: the SDF, or its sign as the papers' ablation (-1 inside)"
    )
    patch: Pair | None = Field(None, description="[height, width] of overlapping training patches; null: whole images")
    stride: Pair | None = Field(None, description="largest distance between training patches; null: half of patch")
    test_patch: Pair | None = Field(
        None, description="validation and test images are cut into equal parts no larger, put together before scoring"
    )
    crop: Pair | None = Field(
        None, description="train on random crops of [height, width]; validation and test images have a fixed one"
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
    group_column: Text = Field(
        "group", description="folder: column of split.csv or groups.csv that says what stays together"
    )
    max_megapixels: Float = Field(100.0, gt=0, le=2000, description="largest raw image")
    validation_fraction: Float = Field(0.15, ge=0, lt=1, description="share of training images for val, by patient")
    test_fraction: Float | None = Field(
        None, ge=0, lt=1, description="share moved to test if there is none; null: 0.2 for lidc, dsb2018, folder"
    )
    split_seed: Int = Field(0, ge=0, lt=2**63, description="seed of the splits")
    allow_partial: bool = Field(False, description="accept an archive that lacks images of the official split")
    workers: Int = Field(0, ge=0, le=1000, description="processes for preparation and packing, 0 for all cores")
    raters: Literal["one", "all"] = Field(
        "one",
        description="which raters of an image a training step shows: one, drawn at random; or all, for prior_share: 1, "
        "with less noise in the gradient",
    )
    foreground_share: Float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of each batch's patches that have foreground of some rater, for sparse objects; null: as in "
        "the data",
    )
    flips: bool = Field(True, description="random horizontal and vertical flips in training")
    rotations: bool = Field(False, description="random 90-degree turns in training")
    augment: AugmentConfig = Field(default_factory=AugmentConfig, description="random changes in training")
    phantom: PhantomConfig = Field(default_factory=PhantomConfig, description="options of source: phantom")

    @property
    def channels(self) -> int:
        """SDF channels."""
        return len(self.classes) if self.classes else 1

    @property
    def max_pixels(self) -> int:
        return int(self.max_megapixels * 1e6)

    @property
    def test_share(self) -> float:
        """Of the training images, moved to test where the archive has no test images."""
        usual = 0.0 if self.source in ("phantom", "glas", "monuseg") else 0.2
        return usual if self.test_fraction is None else self.test_fraction

    @model_validator(mode="after")
    def _fits_together(self) -> DataConfig:
        if self.source not in ("phantom", "prepared") and self.raw is None:
            raise ValueError(f"source: {self.source} needs data.raw, the folder of the unpacked archive")
        for name in ("size", "patch", "test_patch", "crop"):
            value = getattr(self, name)
            if value is not None and min(value) < 8:
                raise ValueError(f"{name}: {list(value)} is smaller than 8 pixels")
        if self.stride is not None and self.patch is None:
            raise ValueError(f"stride: {list(self.stride)} needs data.patch")
        if self.size is not None and self.microns_per_pixel is not None:
            raise ValueError(
                f"microns_per_pixel: {self.microns_per_pixel:g} does not go with data.size, to which every picture is "
                "resized, whatever the size of its pixels"
            )
        if self.crop is not None and self.test_patch is not None:
            raise ValueError("test_patch: does not go with data.crop, which cuts test images already")
        if self.crop is not None and self.foreground_share is not None:
            raise ValueError("foreground_share: does not go with data.crop, whose windows may miss the foreground")
        for inner, outer in (("patch", "size"), ("test_patch", "size"), ("crop", "size"), ("crop", "patch")):
            small, large = getattr(self, inner), getattr(self, outer)
            if small and large and (small[0] > large[0] or small[1] > large[1]):
                raise ValueError(f"{inner}: {list(small)} is larger than data.{outer}: {list(large)}")
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
        return self
