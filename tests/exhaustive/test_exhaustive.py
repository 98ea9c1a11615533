"""A small part of the exhaustive comparison; `make test-exhaustive` runs the whole."""

import drawn_maps
import prove


def test_native_core_equals_float64_computations():
    done, differ = prove.prove(20_000, most_cells=24_000)
    assert done >= 20_000
    assert not differ


def test_every_grid_and_family_has_its_turn():
    kinds = {prove.plan(number)[:3] for number in range(len(prove.KINDS))}
    assert len(kinds) == len(drawn_maps.GRIDS) * len(drawn_maps.FAMILIES)
