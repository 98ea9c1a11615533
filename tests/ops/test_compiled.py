"""The operations inside torch.compile: one graph, the same numbers and errors, no gradient."""

import fastground as fg
import pytest
import torch
from fastground import ops
from fastground.types import Recipe

GIVEN = torch.Generator().manual_seed(0)
MAPS = torch.rand(3, 4, 9, 7, generator=GIVEN) ** 4
QUERY = torch.randn(2, 3, 4, 16, generator=GIVEN)
KEY = torch.randn(2, 2, 40, 16, generator=GIVEN)
OTHER = Recipe(kernel_size=3, sigma=2, border="reflect", region="mass")


def rows(maps, layers=False, **given):
    query = QUERY * maps[0, 0, 0, 0]
    return fg.attention_rows(
        *(([query, query], [KEY, KEY + 1]) if layers else (query, KEY)), **given
    )


CALLS = {
    "attention_sum": lambda maps: fg.attention_sum(2 * maps) + 1,
    "binarize": lambda maps: fg.binarize(2 * maps, cut="mean+eps"),
    "label": lambda maps: fg.label(2 * maps),
    "label of masks": lambda maps: fg.label(maps > 0.5),
    "entropy": lambda maps: fg.entropy(2 * maps, weight="mass"),
    "head_stats": lambda maps: fg.head_stats(2 * maps).entropy,
    "smooth": lambda maps: fg.smooth(2 * maps, kernel_size=3) * 3,
    "combine": lambda maps: ops.combine(2 * maps, recipe=OTHER),
    "boxes": lambda maps: tuple(fg.boxes(2 * maps)),
    "boxes of a recipe": lambda maps: tuple(
        fg.boxes(2 * maps, recipe=OTHER, valid=maps[0, 0] > 0.001)
    ),
    "attention_rows": rows,
    "rows of heads": lambda maps: rows(maps, heads=[3, 1], phrases=[(0, 2), (1, 3)]),
    "rows of a range": lambda maps: tuple(rows(maps, tokens=range(4, 20))),
    "rows of no places": lambda maps: tuple(rows(maps, tokens=[])),
    "rows of other arrays": lambda maps: fg.attention_rows(QUERY * maps[0, 0, 0, 0], KEY.numpy()),
    "rows of places": lambda maps: tuple(rows(maps, tokens=[3, 4, 9], softcap=5, scale=1)),
    "rows of layers": lambda maps: rows(maps, True, heads=[(0, 1), (1, 2)]),
    "rows of a paged cache": lambda maps: rows(maps, block_table=torch.tensor([[0, 1], [1, -1]])),
    "rows of all layers": lambda maps: rows(maps, True, visible=KEY[:, 0, :, 0] > 0),
}


def parts(answer):
    return answer if isinstance(answer, tuple) else (answer,)


@pytest.mark.parametrize(
    ("name", "dynamic"), [*((name, None) for name in CALLS), ("rows of a range", True)]
)
def test_one_graph_gives_the_same_numbers(name, dynamic):
    """Of one shape, and then of any."""
    torch._dynamo.reset()
    call = CALLS[name]
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for maps in (MAPS, MAPS[1:].requires_grad_()):
        for got, want in zip(parts(compiled(maps)), parts(call(maps)), strict=True):
            assert got.dtype == want.dtype and not got.requires_grad
            assert torch.equal(got.nan_to_num(), want.nan_to_num())


def schema_of(name, **told):
    return pytest.param(getattr(torch.ops.fastground, name).default, told, id=name)


CHOICES = {"weight": "area", "cut": "mean", "empty": "inf", "nan": "raise"}
FILTER = {"kernel_size": 3, "sigma": 1.0, "border": "reflect", "nan": "raise"}
HULL = {"region": "hull", "padding": "exclude", "valid": None}


@pytest.mark.parametrize(
    ("node", "told"),
    [
        schema_of("attention_sum", nan="raise"),
        schema_of("binarize", cut="mean", nan="raise"),
        schema_of("label", cut="mean", nan="raise"),
        schema_of("entropy", **CHOICES), schema_of("head_stats", **CHOICES),
        schema_of("smooth", **FILTER), schema_of("combine", **FILTER),
        schema_of("boxes", **FILTER, **HULL),
    ],
)  # fmt: skip
def test_a_node_tells_what_it_makes(node, told):
    torch.library.opcheck(node, (MAPS,), told, test_utils=("test_schema", "test_faketensor"))


class Entropies(torch.nn.Module):
    def forward(self, maps):
        return fg.entropy(2 * maps)


def test_a_strict_export_has_the_node():
    made = torch.export.export(Entropies(), (MAPS,), strict=True)
    assert torch.ops.fastground.entropy.default in [n.target for n in made.graph.nodes]
    assert torch.equal(made.module()(MAPS + 1), fg.entropy(2 * (MAPS + 1)))


@pytest.mark.parametrize("implementation", ["native", "reference"])
def test_a_node_gives_contiguous_tensors(implementation, monkeypatch):
    """As it tells, whatever the strides of its maps; none of them in the memory of these."""
    monkeypatch.setenv("FASTGROUND_IMPLEMENTATION", implementation)
    flipped, one = MAPS.transpose(-1, -2), {**FILTER, "kernel_size": 1}
    rows = dict.fromkeys(("heads", "visible", "scale", "softcap", "span", "phrases", "block_table"))
    nodes = torch.ops.fastground
    for made in (
        nodes.binarize(flipped, cut="mean", nan="raise"),
        nodes.label(flipped > 0.5, cut="mean", nan="raise"),
        nodes.smooth(flipped, **one),
        nodes.combine(flipped[:, :1], **one),
        *nodes.head_stats(flipped.transpose(0, 1), **CHOICES),
        *nodes.attention_rows([QUERY], [KEY], layers=False, tokens=torch.arange(4), **rows),
    ):
        assert made.is_contiguous()
        assert made.untyped_storage().data_ptr() != MAPS.untyped_storage().data_ptr()


def test_every_operation_is_a_node():
    for name in set(ops.__all__) - {"implementations"}:
        assert hasattr(torch.ops.fastground, name), name


def test_what_is_refused_is_refused_when_the_graph_runs():
    torch._dynamo.reset()
    compiled = torch.compile(lambda maps: fg.entropy(2 * maps), fullgraph=True, backend="aot_eager")
    broken = MAPS.clone()
    broken[1, 2, 3, 4] = float("nan")
    with pytest.raises(ValueError, match=r"maps must be finite .* the first at 6"):
        compiled(broken)
    assert torch.equal(compiled(MAPS), fg.entropy(2 * MAPS))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda maps: rows(maps, True, heads=[(0, 1, 1), (1, 1, 1)]), "too many values"),
        (lambda _: fg.attention_rows(QUERY[0], KEY), r"query must be \(batch, rows"),
        (lambda maps: rows(maps, tokens=range(30, 50)), r"the 40 keys, but got range\(30, 50\)"),
    ],
    ids=["heads of three numbers", "no batch", "a range beyond the keys"],
)
def test_rows_refuse_in_a_graph_what_they_refuse_outside(call, message):
    with pytest.raises(ValueError):
        call(MAPS)
    torch._dynamo.reset()
    with pytest.raises((ValueError, RuntimeError), match=message):
        torch.compile(call, fullgraph=True, backend="aot_eager")(MAPS)


@pytest.mark.filterwarnings("ignore:.*Dynamo (does not know|detected a call):UserWarning")
@pytest.mark.parametrize(
    "call",
    [
        lambda maps: fg.smooth(maps, out=torch.empty_like(maps)) * 3,
        lambda maps: torch.from_numpy(fg.entropy(maps.numpy())),
    ],
    ids=["out", "numpy"],
)
def test_arrays_and_out_break_the_graph_and_are_right(call):
    torch._dynamo.reset()
    assert torch.equal(torch.compile(call, backend="aot_eager")(MAPS), call(MAPS))
