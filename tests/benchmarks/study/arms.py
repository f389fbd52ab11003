"""What is compared.

Every learner takes the same number of optimizer steps, one after the other. The centralised one sees, in
each step, as many frames as all sites together do in one of theirs, so by the end both have seen the same
number of frames. That is the comparison in which federation is to cost nothing: after `STEPS` steps, and
after `LONG`, where the learning is nearly over. One arm more trains on the pooled data in batches of one
site: four times as many steps, which only a learner with all data can take in a row.
"""

from dataclasses import dataclass
from typing import Any

__all__ = ["ARMS", "BATCH_SIZE", "CURVES", "LOCAL_STEPS", "LONG", "SITES", "STEPS", "Arm"]

SITES = ("site-a", "site-b", "site-c", "site-d")
STEPS = 800
LONG = 4 * STEPS
LOCAL_STEPS = (2, 10, 25, 40, 100)  # in a round
BATCH_SIZE = 8  # of one site


@dataclass(frozen=True)
class Arm:
    """One way of training."""

    name: str
    sites: tuple[str, ...] = SITES
    pooled: bool = False  # one learner that sees the data of all `sites`
    steps: int = STEPS
    batch_size: int = BATCH_SIZE
    local_steps: int = 10
    strategy: str = "fedprox"
    server_learning_rate: float = 1.0
    server_momentum: float = 0.3  # of "fedavgm" and "fedadam"
    learning_rate: float = 1.6e-2  # the best of 2e-3, 4e-3, 8e-3 and this for both kinds of learners, seed 0
    scaffold: bool = False
    proximal_mu: float = 0.001
    fraction_fit: float = 1.0
    keep_optimizer: bool = True  # AdamW's moments from round to round, at each site
    shared_normalisation: bool = True
    corrupt: str = ""  # the site with a damaged video
    alike: bool = False  # every site draws its frames from the data of all
    fine_tuned: bool = False  # of a base that was pretrained on other scenes; else from scratch
    seeds: int = 3

    @property
    def num_rounds(self) -> int:
        """Rounds of `local_steps` that make `steps`."""
        return self.steps // self.local_steps


_POOLED_BATCH = BATCH_SIZE * len(SITES)
# The figure of local steps: curve -> what its arms have in common.
_PLAIN, _MOMENTUM, _BEST = "FedProx", "FedProx, server momentum", "FedProx, tuned momentum"
_TUNED: dict[str, Any] = {"strategy": "fedavgm", "server_momentum": 0.6, "learning_rate": 8e-3}
CURVES: dict[str, dict[str, Any]] = {
    _PLAIN: {},
    _MOMENTUM: {"strategy": "fedavgm"},
    _BEST: _TUNED,  # chosen on seed 10, at 40 local steps
}
_SEEDS = {(_PLAIN, 2): 3, (_PLAIN, 10): 3, (_MOMENTUM, 10): 3, (_BEST, 40): 5}  # elsewhere one


ARMS = (
    Arm("centralised", pooled=True, batch_size=_POOLED_BATCH, seeds=5),
    Arm("FedAvg", strategy="fedavg"),
    *(
        Arm(f"{curve}, {k} local steps", local_steps=k, seeds=_SEEDS.get((curve, k), 1), **settings)
        for curve, settings in CURVES.items()
        for k in LOCAL_STEPS
    ),
    Arm("FedProx mu=0.01", proximal_mu=0.01),
    Arm("FedProx mu=0.1", proximal_mu=0.1),
    *(Arm(f"{site} alone", sites=(site,), pooled=True) for site in SITES),
    Arm("FedProx, each site's own normalisation", shared_normalisation=False),
    # The same four times as long.
    Arm("centralised, long", pooled=True, batch_size=_POOLED_BATCH, steps=LONG),
    Arm("FedProx, long", steps=LONG, seeds=1),
    Arm("FedProx, server momentum, long", strategy="fedavgm", steps=LONG),
    Arm(f"{_BEST}, 40 local steps, long", local_steps=40, steps=LONG, **_TUNED),
    # Were the sites alike: what is lost by averaging rarely alone.
    Arm(f"{_BEST}, 40 local steps, sites alike", local_steps=40, alike=True, **_TUNED),
    # From a base, as the real policy is trained.
    Arm("centralised, fine-tuned", pooled=True, batch_size=_POOLED_BATCH, fine_tuned=True, seeds=5),
    Arm(f"{_BEST}, 40 local steps, fine-tuned", local_steps=40, fine_tuned=True, seeds=5, **_TUNED),
    # What single choices do: one seed.
    Arm("centralised, batches of one site", pooled=True, steps=LONG, seeds=1),
    Arm("FedProx, optimizer state reset", keep_optimizer=False, seeds=1),
    Arm("FedProx, 5 local steps", local_steps=5, seeds=1),
    Arm("FedProx, 50 % participation", fraction_fit=0.5, seeds=1),
    Arm("FedProx, one site with corrupt video", corrupt="site-d", seeds=1),
    Arm("FedProx, SCAFFOLD", scaffold=True, seeds=1),
    Arm("FedAdam", strategy="fedadam", server_learning_rate=2e-3, server_momentum=0.9, seeds=1),
)
