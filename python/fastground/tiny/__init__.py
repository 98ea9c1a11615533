"""The embedded LVLM `tiny`: its checkpoint, its model card, and the program that trained it."""
