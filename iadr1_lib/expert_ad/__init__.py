"""Samples with masks come in; chain-of-thought records in the released formats go out, with a report and a data card.

`facts` measures a picture and its mask, a teacher writes the reasoning, and `verification` rejects what is not sound.
Begin with `build.build_records`, which puts the three together.
"""

from iadr1_lib.expert_ad.build import UNUSABLE, build_records, draw_sets, export, rejections_table, report_of
from iadr1_lib.expert_ad.card import write_card
from iadr1_lib.expert_ad.facts import Facts, facts_of, measure, note_of
from iadr1_lib.expert_ad.support import supports
from iadr1_lib.expert_ad.teachers import (
    Budget,
    Draft,
    RuleTeacher,
    Task,
    Teacher,
    read_short,
    short_reasoning,
    teacher_vocabulary,
    teacher_within,
)
from iadr1_lib.expert_ad.verification import MOST_CHARACTERS, RULES, Verifier, failures
