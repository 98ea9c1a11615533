"""An expression as words: checked, put into its sentence, found among a prompt's tokens."""

from __future__ import annotations

from fastground.phrases import Phrase
from fastground.types import Recipe


def checked(expressions: list[str], image_token: str) -> list[str]:
    """The expressions, each of words in Unicode and without the image's token."""
    if isinstance(expressions, str) or not expressions:
        raise ValueError(
            f"expressions must be a list of at least one string, but got {expressions!r}"
        )
    for expression in expressions:
        if not isinstance(expression, str) or not expression.strip():
            raise ValueError(
                f"expression must say something, such as 'the red mug', but got {expression!r}"
            )
        if any("\ud800" <= letter <= "\udfff" for letter in expression):
            raise ValueError(f"expression must be text in Unicode, but got {expression!r}")
        if image_token in getattr(expression, "sentence", expression):
            raise ValueError(
                f"expression must not hold the image token {image_token!r}, but got {expression!r}"
            )
    return list(expressions)


def sentence(expression: str, recipe: Recipe) -> str:
    """The whole sentence that the prompt holds, with a final "." where the recipe asks for it."""
    text = expression.sentence if isinstance(expression, Phrase) else expression
    text = text.strip()
    return text if text.endswith(".") or not recipe.ensure_period else text + "."


def own_letters(expression: str, recipe: Recipe) -> range:
    """Where the expression's letters stand in its sentence."""
    if not isinstance(expression, Phrase):
        return range(len(expression.strip()))
    if recipe.query in ("last_prompt", "first_generated"):
        raise ValueError(
            f"recipe.query {recipe.query!r} asks at the prompt's end, the same for all phrases of "
            f"a sentence, so {str(expression)!r} cannot be asked in its place; use "
            "query='last_expression' or 'phrase_mean', or hand over str(phrase)"
        )
    before = len(expression.sentence) - len(expression.sentence.lstrip())
    return range(expression.start - before, expression.end - before)


def inside(spans: list[tuple[int, int]], first: int, last: int) -> list[int]:
    """Tokens that hold a letter of prompt[first:last]; the last may reach beyond it."""
    return [i for i, (a, b) in enumerate(spans) if first < b and a < last and a < b]
