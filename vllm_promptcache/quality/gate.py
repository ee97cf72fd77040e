"""The gate: approximate reuse only by policies that have passed on this model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vllm_promptcache.layout.schema_layout import SchemaLayout
from vllm_promptcache.policies import Policy, Repair
from vllm_promptcache.quality.profile import Profile


@dataclass(frozen=True, slots=True)
class PolicyGate:
    """Holds schemas to a profile, and prompts to the KL that they ask for.

    Schemas are when they are compiled. A prompt that says another `repair` than its schema, and no
    `max_kl`, is not held to the profile.

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

    def is_within(self, layout: SchemaLayout, repair: Repair | None, max_kl: float) -> bool:
        """Whether all policies of a schema have a mean KL of at most `max_kl` nats.

        Args:
            layout: The schema.
            repair: What a prompt says instead of its modules; None for theirs.
            max_kl: What the prompt allows. What was not measured is not within it.
        """
        policies = (policy.changed(None, repair) for policy in layout.policies)
        measured = map(self.profile.find, policies)
        return all(found is not None and found.kl <= max_kl for found in measured)

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
