"""The method a second time, from its description alone: plain, slow, one thing at a time.

    look.py       an expression -> maps, and where their cells lie
    heads.py      maps -> statistics -> elbow, kept, elect -> ranking -> other choices   discovery
    grounding.py  maps -> cleared -> smooth -> regions -> found -> objects               grounding
    segments.py   what a segmenter is told, and which of its masks is taken
    written.py    a box -> what each family of models writes for it
    scores.py     found beside a sample -> row -> scores -> their intervals              evaluation

float64 NumPy, SciPy's labels, OpenCV's hulls, the model's own eager attention; no line is shared
with fastground. Maps are (layers, heads, grid_h, grid_w); a head is (layer, head), both 0-based.
"""

from by_hand import grounding, heads, look, scores, segments, written

__all__ = ["grounding", "heads", "look", "scores", "segments", "written"]
