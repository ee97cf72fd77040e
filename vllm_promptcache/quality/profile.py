"""Profiles: what `quality.calibrate` has measured of a model, for servers to go by."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

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

VERSION: Literal[2] = 2

VerdictName: TypeAlias = Literal["passes", "fails", "undecided"]


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
        loss_interval: Where the loss is over many rows, with 95 %; None for a single row.
        kl_interval: The same of the KL.
        recomputed_share: Module tokens that are computed again, of all.
        verdict: Whether both intervals are within the profile's limits (`passes`), or one is
            outside (`fails`), or neither can be told.
        num_more_rows: If it is undecided, about how many more rows would decide; None if that is
            no number of use.
    """

    policy: NamedPolicy
    loss: float
    kl: float
    loss_interval: tuple[float, float] | None = None
    kl_interval: tuple[float, float] | None = None
    recomputed_share: float
    verdict: VerdictName
    num_more_rows: int | None = None

    @property
    def more_rows(self) -> str:
        """`num_more_rows` in words."""
        if self.num_more_rows is None:
            return "no number of rows"
        return f"about {self.num_more_rows:,} more row{'s' if self.num_more_rows > 1 else ''}"


class Profile(_Part):
    """A calibrated model.

    Attributes:
        version: Of this format.
        model: The model.
        tolerance: Points of score that a policy may lose.
        max_kl: Largest KL that it may have, in nats.
        num_rows: Questions that were asked.
        measured: The candidates.
        default: The cheapest that passes, else `exact`.
    """

    version: Literal[2] = VERSION
    model: ProfiledModel
    tolerance: float
    max_kl: float
    num_rows: int = Field(ge=1)
    measured: tuple[Measured, ...]
    default: NamedPolicy

    @model_validator(mode="after")
    def _check_default(self) -> Self:
        if self.default not in (*self.passed, EXACT):
            raise ValueError("`default` must be a policy that passes, or `exact`")
        return self

    @property
    def passed(self) -> list[Policy]:
        """The policies that may be served."""
        return [found.policy for found in self.measured if found.verdict == "passes"]

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
