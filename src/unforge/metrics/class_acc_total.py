"""Share of all images whose class of three is named rightly (see `class_acc`).

Averaging: mean over all images, not over classes. Empty masks: no matter, they are a class. Resolution: original, for
the mask. Source: SIDA's evaluator ("Overall Acc"); TamperTok's "Overall" is `class_acc@macro`.
"""

from __future__ import annotations

from unforge.metrics import class_acc

VERSION = "1"

METRIC = class_acc.total()
