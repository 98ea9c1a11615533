"""The one seam in transformers: a registered attention function, called in place of a model's own.

    attention layer -> AttentionInterface["fastground"]     -> listener.attend -> the layer's own
    making of masks -> AttentionMaskInterface["fastground"] -> the own mask function

Both are needed: without a mask function under the same name transformers silently passes no mask.
Own functions are given the configuration as it was, since some read their name there: in a copy, so
that nothing changes for other threads meanwhile.

A seam is open in one model and one thread at a time; forwards of that model in other threads pass
through it unheard. None of it is traced by torch.compile, whose graphs break there.
"""

from __future__ import annotations

import copy
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Protocol

import torch

NAME = "fastground"
_lock = threading.Lock()
_open: dict[int, Seam] = {}
"""The open seams by the id of the text configuration, which attention and masks are given."""


class Listener(Protocol):
    """Who is told of a forward and takes part in its attention."""

    def begin(self, given: dict[str, Any]) -> None:
        """A forward begins, with these arguments by name."""

    def end(self) -> None:
        """It has ended, by an error or not."""

    def attend(self, own: Callable[..., Any], module: Any, *arguments: Any, **keywords: Any) -> Any:
        """What an attention layer calls; returns what its own function does."""


class Seam:
    """A model whose attention goes through a listener, from `open` to `close`."""

    def __init__(self, model: Any, listener: Listener) -> None:
        self.model = unwrapped(model)
        self.text = self.model.config.get_text_config(decoder=True)
        self.listener = listener
        self.calls = 0
        """Of the model and of what wraps it, of which one is in the other: those that run."""
        # Until 0.21 PEFT's wrapper calls no module, but the forward of the model inside.
        tuner = getattr(model, "base_model", None) if hasattr(model, "get_base_model") else None
        self._called = [m for m in (self.model, tuner) if isinstance(m, torch.nn.Module)]
        self._hooks: list[Any] = []
        self.made_none = False
        """Whether the model's own mask function has said that None will do."""

    def open(self) -> None:
        """Let the attention of this thread's forwards go through the listener.

        Raises:
            RuntimeError: the model's seam is open already.
            ValueError: its attention is not registered together with a mask function.
        """
        begin, end = _register()
        self._thread = threading.get_ident()
        with _lock:
            if id(self.text) in _open:
                raise RuntimeError(
                    "model must not be captured twice at a time, nor in two threads; leave the "
                    "first with block, or ask it for all heads and rows at once"
                )
            self.own = self.text._attn_implementation
            if not _is_registered(self.own):
                raise ValueError(
                    "model must use attention that transformers has registered together with its "
                    f"masks, such as sdpa or eager, but uses {self.own!r}; call "
                    "model.set_attn_implementation('sdpa') first"
                )
            self.before = copy.copy(self.text)
            _open[id(self.text)] = self
        try:
            for called in self._called:
                self._hooks.append(called.register_forward_pre_hook(begin, with_kwargs=True))
                self._hooks.append(called.register_forward_hook(end, always_call=True))
            self._name(NAME)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """The model as it was."""
        try:
            self._name(self.own)
        finally:
            for hook in self._hooks:
                hook.remove()
            _open.pop(id(self.text), None)

    def hears(self) -> bool:
        """Whether this thread's forwards are listened to."""
        return threading.get_ident() == self._thread

    def as_before(self, module: Any) -> Any:
        """The same layer, with the configuration as it was."""
        twin = object.__new__(type(module))
        twin.__dict__.update(module.__dict__, config=self.before)
        return twin

    def _name(self, implementation: str) -> None:
        self.text._attn_implementation = {"": implementation}  # of this part alone


def unwrapped(model: Any) -> Any:
    """The transformers model inside torch.compile's and PEFT's wrappers, whoever calls it.

    Raises:
        ValueError: PEFT puts learned tokens or keys before its input.
    """
    model = getattr(model, "_orig_mod", model)
    adapter = getattr(model, "active_peft_config", None)
    if getattr(adapter, "is_prompt_learning", False):
        raise ValueError(
            "model must see its input alone, but PEFT puts learned prompts before it "
            f"({type(adapter).__name__}), so that the image's tokens are not where the input has "
            "them; capture and call model.get_base_model(), which is without"
        )
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(inner, "_orig_mod", inner)


def refuse_absent(model: torch.nn.Module) -> None:
    """Nothing, unless the model has no weights: those on disk count, which accelerate loads.

    Raises:
        ValueError: all of its parameters lie on "meta", and no hook would load them.
    """
    absent = [weight.is_meta for weight in _until_there(model)]
    if not absent or not all(absent) or any(hasattr(m, "_hf_hook") for m in model.modules()):
        return
    raise ValueError(
        f"model must have its weights, but all {len(absent)} of its parameters lie on 'meta', "
        "which holds no numbers; load them with from_pretrained, which with device_map may leave "
        "some on disk"
    )


def _until_there(model: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
    """The model's parameters up to the first that is not on "meta"."""
    for weight in model.parameters():
        yield weight
        if not weight.is_meta:
            return


@cache
def sdpa() -> Callable[..., Any]:
    """The attention that transformers registers as sdpa."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward


def cache_name(model: Any) -> str:
    """What the model's forward and its output call the keys of earlier tokens."""
    named = inspect.signature(unwrapped(model).forward).parameters
    return "cache" if "cache" in named else "past_key_values"


def empty_cache(model: Any) -> dict[str, Any]:
    """Where a forward puts its keys, by its name for that; some models make none themselves."""
    from transformers import DynamicCache

    return {cache_name(model): DynamicCache(config=model.config)}


def spread(cached: dict[str, Any], count: int) -> dict[str, Any]:
    """The cache of one sequence, by its name, as one of so many, apart from it; or none of none.

    Keys and values are views, which a forward copies as it joins its own to them.
    """
    return {name: _spread(cache, count) for name, cache in cached.items()}


def _spread(cache: Any, count: int) -> Any:
    whole = [
        (place, name, x)
        for place, layer in enumerate(cache.layers)
        for name, x in vars(layer).items()
        if name in ("keys", "values") and x is not None
    ]
    # States, which a forward overwrites, are copied; of keys and values nothing is, for now.
    several = copy.deepcopy(cache, {id(x): x[..., :0, :] for _, _, x in whole})
    several.reorder_cache(whole[0][2].new_zeros(count, dtype=torch.long))
    for place, name, x in whole:
        setattr(several.layers[place], name, x.expand(count, *x.shape[1:]))
    return several


_SEARCHES = ("beam_search", "assisted_decoding", "get_unconditional_logits")


def refuse_searches() -> None:
    """Nothing, unless `generate` calls the model in a way whose forwards are not its tokens.

    Raises:
        ValueError: in beam search sequences change places; in assisted decoding tokens are tried;
            classifier-free guidance asks another prompt, too.
    """
    frame = sys._getframe()
    while frame is not None:
        name = frame.f_code.co_name
        ours = frame.f_globals.get("__name__", "").startswith("transformers.generation")
        if ours and any(way in name for way in _SEARCHES):
            raise ValueError(
                "rows='steps' needs generate to say one token after another, but it is called for "
                f"{name.strip('_').replace('_', ' ')}; pass num_beams=1, no assistant and no "
                "guidance_scale, or capture one forward over the tokens that were said"
            )
        frame = frame.f_back  # type: ignore[assignment]


def _is_registered(implementation: str) -> bool:
    from transformers import AttentionInterface, AttentionMaskInterface

    return implementation in AttentionMaskInterface() and (
        implementation == "eager" or implementation in AttentionInterface()
    )


def _own_function(module: Any, implementation: str) -> Callable[..., Any]:
    """The attention function that a layer calls by this name."""
    from transformers import AttentionInterface

    if implementation == NAME:
        raise RuntimeError(
            f"attention {NAME!r} works only inside fastground.capture; call "
            "model.set_attn_implementation('sdpa')"
        )
    homes = [sys.modules[kind.__module__] for kind in type(module).__mro__]
    if implementation == "eager":
        for home in homes:
            if hasattr(home, "eager_attention_forward"):
                return home.eager_attention_forward
        raise RuntimeError(
            f"model must define eager_attention_forward beside {type(module).__name__} to be "
            "captured with eager attention; call model.set_attn_implementation('sdpa')"
        )
    return getattr(homes[0], "ALL_ATTENTION_FUNCTIONS", AttentionInterface())[implementation]


def _attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **keywords: Any
) -> Any:
    seam, arguments = _open.get(id(module.config)), (query, key, value, attention_mask)
    if seam is None:
        own = _own_function(module, module.config._attn_implementation)
        return own(module, *arguments, **keywords)
    own, module = _own_function(module, seam.own), seam.as_before(module)
    if not seam.hears():
        return own(module, *arguments, **keywords)
    return seam.listener.attend(own, module, *arguments, **keywords)


def _make_mask(*args: Any, config: Any, **keywords: Any) -> Any:
    from transformers import AttentionMaskInterface

    seam = _open.get(id(config))
    config = config if seam is None else seam.before
    mask = AttentionMaskInterface()[config._attn_implementation](*args, config=config, **keywords)
    if seam is not None and seam.hears():
        seam.made_none |= mask is None
    return mask


def _begin(model: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    seam = _open.get(id(model.config.get_text_config(decoder=True)))
    if seam is None or not seam.hears():
        return
    seam.calls += 1
    if seam.calls > 1:
        return
    signature = inspect.signature(seam.model.forward)
    given = signature.bind_partial(*args, **keywords).arguments
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            given |= given.pop(name, {})
    seam.listener.begin(given)


def _end(model: Any, args: tuple[Any, ...], output: Any) -> None:
    seam = _open.get(id(model.config.get_text_config(decoder=True)))
    if seam is None or not seam.hears():
        return
    seam.calls -= 1
    if seam.calls == 0:
        seam.listener.end()


@cache
def _register() -> tuple[Callable[..., None], Callable[..., None]]:
    """Both functions made known to transformers, and the hooks for models; none is traced."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, torch.compiler.disable(_attend))
    AttentionMaskInterface.register(NAME, torch.compiler.disable(_make_mask))
    return torch.compiler.disable(_begin), torch.compiler.disable(_end)
