"""F1 of fully synthetic images against the two other classes (see `class_f1`).

Averaging: over the whole test set. Empty masks: no matter, they are a class. Resolution: original, for the mask.
Source: TamperTok, Sec. A.3 and Table 7.
"""

from __future__ import annotations

from unforge.metrics import class_f1

VERSION = "1"

METRIC = class_f1.one("synthetic")
