"""Share of real images that are named so, of three classes (see `class_acc`).

Averaging: mean over real images. Empty masks: no matter, they are a class. Resolution: original, for the mask.
Source: TamperTok, Sec. A.3 and Table 7; SIDA's evaluator (accuracy of a class is its recall).
"""

from __future__ import annotations

from unforge.metrics import class_acc

VERSION = "1"

METRIC = class_acc.one("real")
