"""The gate: approximate reuse only by policies that have passed on this model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vllm_promptcache.layout.schema_layout import SchemaLayout
from vllm_promptcache.policies import Policy
from vllm_promptcache.quality.profile import Profile


@dataclass(frozen=True, slots=True)
class PolicyGate:
    """Holds schemas to a profile. It is asked when a schema is compiled, not for its prompts.

    A prompt that says another `repair` than its schema is not held to the profile.

    Attributes:
        profile: What was measured of the model.
    """

    profile: Profile

    def apply(self, layout: SchemaLayout) -> SchemaLayout:
        """Returns a schema as it is, or exact if a policy of its modules has not passed."""
        failed = [policy for policy in layout.policies if policy not in self.profile.passed]
        if layout.is_exact or not failed:
            return layout
        return replace(layout, is_exact=True, fallback="; ".join(map(self._reason, failed)))

    def _reason(self, policy: Policy) -> str:
        found, profile = self.profile.find(policy), self.profile
        if found is None:
            return f"policy {policy} was not measured"
        figures = f"policy {policy} lost {found.loss:.1f} points with a KL of {found.kl:.3f}"
        limits = f"at most {profile.tolerance:g} points and {profile.max_kl:g} nats are wanted"
        if found.verdict == "undecided":
            rows = f"{profile.num_rows} row{'s' if profile.num_rows > 1 else ''} do not tell"
            return f"{figures}, {limits}, which {rows}; {found.more_rows} would decide"
        return f"{figures}, {limits}"
