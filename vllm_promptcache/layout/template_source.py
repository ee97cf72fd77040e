"""Whether a chat template can write other text from one moment to the next, by what it reaches."""

from __future__ import annotations

from typing import Any

# Messages and their like, and functions that give the same for the same arguments.
_SETTLED = frozenset(
    {
        "messages",
        "tools",
        "documents",
        "raise_exception",
        "range",
        "dict",
        "namespace",
        "cycler",
        "joiner",
    }
)
# What is of these kinds is given to the template anew, as the same, or not at all.
_PLAIN = "undefined", "none", "boolean", "string"
# A filter, which others take by its name.
_RANDOM = "random"
_MARK = "settled"


def can_change(source: object, tokenizer: Any) -> bool:
    """Whether a chat template may write another text for the same messages, all by itself.

    Only what its environment gives it can tell the time, such as `strftime_now`. So the environment
    is asked what it has under the names in the template; whatever is not known to stay is taken for
    something that changes.

    Args:
        source: The template, in Jinja; anything else is not known to stay.
        tokenizer: The tokenizer that it is of: a Hugging Face one, or one of vLLM's own.
    """
    if not isinstance(source, str) or _RANDOM in source:
        return True

    def render(template: str | None) -> str:
        """Renders a message with a template in that environment, with its own for None."""
        return str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": "text"}],
                chat_template=template,
                tokenize=False,
                add_generation_prompt=True,
            )
        )

    try:
        return render(source) != render(None) or render(_probe(source)) != _MARK
    # It is not written in Jinja, or cannot be asked.
    except Exception:
        return True


def _probe(source: str) -> str:
    """A template that writes the names in another one behind which there may be anything."""
    # Only here: most of what uses layouts needs no templates.
    from jinja2 import Environment
    from jinja2.meta import find_undeclared_variables

    tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(source)
    names = sorted(find_undeclared_variables(tree) - _SETTLED)
    plain = (" or ".join(f"{name} is {kind}" for kind in _PLAIN) for name in names)
    return _MARK + "".join(
        f"{{{{ '' if {condition} else '{name}' }}}}"
        for name, condition in zip(names, plain, strict=True)
    )
