"""LLaVA-1.5 and what loads as one."""

from families import Family
from random_llava import random_llava

FAMILIES = [Family("llava", lambda seed: random_llava(seed))]
