"""All sections of a config together."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from utils.checks import check_sections
from utils.data_schema import DataConfig, Int, Section
from utils.sections import STOCHASTIC, EvaluationConfig, ModelConfig, SamplingConfig, SDEConfig, TrainingConfig


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError("a name is made of letters, digits, '.', '_' and '-', and begins with a letter or digit")
    return name


class Config(Section):
    """A whole experiment (docs/config.md is made from this and its sections)."""

    name: Annotated[str, AfterValidator(_folder_name)] = Field(max_length=100, description="folder under runs/")
    seed: Int = Field(0, ge=0, lt=2**63, description="seed of training and sampling")
    data: DataConfig
    model: ModelConfig = Field(default_factory=ModelConfig)
    sde: SDEConfig = Field(default_factory=SDEConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        check_sections(dict(self))
        return self

    @property
    def is_one_pass(self) -> bool:
        """Whether the network sees the image only: no noise is drawn from, and the direct mean is there."""
        return self.model.is_baseline or (self.sde.prior_share == 1 and self.sde.objective == "mean")

    @property
    def has_draws(self) -> bool:
        """Whether there is more to draw from than the direct mean."""
        return not self.is_one_pass or self.model.kind in STOCHASTIC
