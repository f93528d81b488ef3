"""The four rewards of SC-GRPO, R = R_con + R_acc + R_loc + R_type, each a function `…_reward` in `functions`.

Each takes TRL's arguments and gives one finite float per completion, whatever the completion holds. What they pay
depends on the mode, an entry of `MODES`; to add a mode, add an entry:

- ``released``: what the paper's released code pays, its slips included; accuracy, location and type are one sum.
- ``paper``: the four rewards as the paper words them; location and type are paid only after a right answer.
- ``strict``: hardened. The traps of the released code are closed, and a model that is half sure and gets half of its
  tags right earns the same by Yes and by No.
- ``semantic``: as ``strict``, but types are compared by what a small sentence model makes of them (extra ``semantic``).
- ``grounded``: as ``strict``, but R_con wants more than the form: the reasoning names the place and the type of the
  tags and contradicts nothing (`expert_ad.supports`).
"""

from iadr1_lib.rewards.balance import HalfSure, half_sure_payoff
from iadr1_lib.rewards.comparing import CATEGORY, EXACT, FUZZY, GROUP, SEMANTIC, location_score, type_score
from iadr1_lib.rewards.functions import (
    RewardFunction,
    accuracy_reward,
    check_solutions,
    consistency_reward,
    location_reward,
    reward_functions,
    reward_weights,
    total_reward,
    type_reward,
)
from iadr1_lib.rewards.modes import MODES, Mode, mode_named
