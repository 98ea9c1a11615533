"""The restricted unpickler: plain data of Python 2 and 3 comes back, and nothing is ever run."""

import pickle

import pytest
from fastground import datasets
from fastground.datasets.shapes.export import python2_pickle
from fastground.datasets.unpickle import load_plain


class Bomb:
    """Pickled, it would make a file when read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_is_refused_and_nothing_is_run(tmp_path, protocol):
    mark = tmp_path / "executed"
    path = tmp_path / "refcoco" / "refs(unc).p"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps([{"ref_id": Bomb(mark)}], protocol))
    with pytest.raises(ValueError, match=r"only, but it asks for .*open; nothing of it was run"):
        datasets.refcoco(tmp_path, "train", images=tmp_path)
    assert not mark.exists()
    with open(path, "rb") as file:
        pickle.load(file)[0]["ref_id"].close()
    assert mark.exists()  # it was a true one


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'touch {}'\ntR.",  # GLOBAL, REDUCE
        b"(S'touch {}'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch {}'\no.",  # OBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x08touch {}\x85R.",  # STACK_GLOBAL
        b"ccopy_reg\n_reconstructor\n(cos\nsystem\nc__builtin__\nobject\nNtR.",
        b"Pelsewhere\n.",  # a persistent id
        b"\x80\x02\x82\x01.",  # an extension code
    ],
)
def test_every_way_to_a_function_is_closed(tmp_path, program):
    path = tmp_path / "refs.p"
    mark = tmp_path / "executed"
    path.write_bytes(program.replace(b"{}", str(mark).encode()))
    with pytest.raises(ValueError, match="must be a"):
        load_plain(path)
    assert not mark.exists()


def test_python_2_wrote_bytes_of_any_kind(tmp_path):
    path = tmp_path / "refs.p"
    plain = [{"sent": "left man", "tokens": ["left", "man"], "sent_id": -3, "raw": 'it\'s "a"\n'}]
    path.write_bytes(python2_pickle(plain))
    assert load_plain(path) == plain
    assert b"S'left man'\n" in path.read_bytes()
    path.write_bytes(
        b"\x80\x02]q\x00(U\x04caf\xe9X\x05\x00\x00\x00caf\xc3\xa9K\x07G?\xf8\0\0\0\0\0\0e."
    )
    assert load_plain(path) == ["café", "café", 7, 1.5]
    path.write_bytes(b"(lp1\n(dp2\nS'caf\\xe9'\np3\nV\\u00e9\np4\nsag3\na.")
    assert load_plain(path) == [{"café": "é"}, "café"]
    for value in ({"a": (1, 2.5, None, True)}, {1, 2}, [b"x", 10**30]):
        path.write_bytes(pickle.dumps(value))
        assert load_plain(path) == value


def test_a_broken_pickle(tmp_path):
    path = tmp_path / "refs.p"
    whole = python2_pickle([{"ref_id": i, "sentences": ["a", "b"]} for i in range(20)])
    for broken in (whole[:-50], b"", b"(l", b"no pickle", b"I1\nI2\n"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"refs\.p must be a whole pickle, but cannot"):
            load_plain(path)
    with pytest.raises(FileNotFoundError):
        load_plain(tmp_path / "nowhere.p")
