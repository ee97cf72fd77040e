"""Profiles: what `quality.calibrate` has measured of a model, for servers to go by."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    model_validator,
)

from vllm_promptcache.errors import ClientError
from vllm_promptcache.policies import EXACT, Policy

VERSION: Literal[1] = 1


def _policy(value: object) -> Policy:
    policy = value if isinstance(value, Policy) else Policy.parse(str(value))
    if policy is None:
        raise ValueError(f"{value!r} is no policy")
    return policy


# In a file it is its name.
NamedPolicy = Annotated[Policy, PlainValidator(_policy), PlainSerializer(str)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ProfiledModel(_Part):
    """Which model was measured.

    Attributes:
        name: As it was given to `--model`.
        config_sha256: Of its `config.json`, in hex; see `load_profile.config_sha256`.
    """

    name: str
    config_sha256: str


class Measured(_Part):
    """Figures of a policy, means over rows.

    Attributes:
        policy: The policy.
        loss: Points of score, of 100, below a plain prefill; negative where it is above.
        kl: KL(plain || policy) of the first token, in nats.
        recomputed_share: Module tokens that are computed again, of all.
    """

    policy: NamedPolicy
    loss: float
    kl: float
    recomputed_share: float


class Profile(_Part):
    """A calibrated model.

    Attributes:
        version: Of this format.
        model: The model.
        tolerance: Points of score that a policy may lose.
        max_kl: Largest KL that it may have, in nats.
        num_rows: Questions that were asked.
        measured: The candidates.
        passed: Those within both limits.
        default: The cheapest of these, else `exact`.
    """

    version: Literal[1] = VERSION
    model: ProfiledModel
    tolerance: float
    max_kl: float
    num_rows: int = Field(ge=1)
    measured: tuple[Measured, ...]
    passed: tuple[NamedPolicy, ...]
    default: NamedPolicy

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        unknown = {*self.passed} - {measured.policy for measured in self.measured}
        if unknown or self.default not in (*self.passed, EXACT):
            raise ValueError("`passed` must have been measured, and `default` be one of these")
        return self

    def find(self, policy: Policy) -> Measured | None:
        """The figures of a policy, None if it was not measured."""
        return next((found for found in self.measured if found.policy == policy), None)

    def check_model(self, path: str, model: ProfiledModel) -> None:
        """Checks that the profile, which was read from `path`, is that of a model.

        Raises:
            ClientError: It is that of another one.
        """
        if model.config_sha256 != self.model.config_sha256:
            raise ClientError(
                f"the profile {path} is of model {self.model.name} (SHA-256 of its config.json: "
                f"{self.model.config_sha256[:12]}), the engine has {model.name} "
                f"({model.config_sha256[:12]})",
                "calibrate this model, or leave the profile out",
            )
