"""The sets that scripts/data/prepare.py makes, by name: one file per set says how to get and read it."""

from sources.dolly import DOLLY
from sources.self_inst import SELF_INST
from sources.sinst import SINST
from sources.uinst import UINST
from sources.vicuna import VICUNA

SETS = {"dolly": DOLLY, "self-inst": SELF_INST, "vicuna": VICUNA, "sinst": SINST, "uinst": UINST}
