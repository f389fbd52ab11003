"""What is compared.

Every learner takes the same number of optimizer steps, one after the other. The centralised one sees, in
each step, as many frames as all sites together do in one of theirs, so by the end both have seen the same
number of frames. That is the comparison in which federation is to cost nothing: after `STEPS` steps, and
after `LONG`, where the learning is nearly over. One arm more trains on the pooled data in batches of one
site: four times as many steps, which only a learner with all data can take in a row.
"""

from dataclasses import dataclass

__all__ = ["ARMS", "BATCH_SIZE", "LONG", "SITES", "STEPS", "Arm"]

SITES = ("site-a", "site-b", "site-c", "site-d")
STEPS = 800
LONG = 4 * STEPS
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
    scaffold: bool = False
    proximal_mu: float = 0.001
    fraction_fit: float = 1.0
    keep_optimizer: bool = True  # AdamW's moments from round to round, at each site
    shared_normalisation: bool = True
    corrupt: str = ""  # the site with a damaged video
    seeds: int = 3

    @property
    def num_rounds(self) -> int:
        """Rounds of `local_steps` that make `steps`."""
        return self.steps // self.local_steps


_POOLED_BATCH = BATCH_SIZE * len(SITES)

ARMS = (
    Arm("centralised", pooled=True, batch_size=_POOLED_BATCH),
    Arm("FedAvg", strategy="fedavg"),
    Arm("FedProx mu=0.001"),
    Arm("FedProx mu=0.01", proximal_mu=0.01),
    Arm("FedProx mu=0.1", proximal_mu=0.1),
    Arm("FedProx, 2 local steps", local_steps=2),
    Arm("FedProx, server momentum", strategy="fedavgm"),
    *(Arm(f"{site} alone", sites=(site,), pooled=True) for site in SITES),
    Arm("FedProx, each site's own normalisation", shared_normalisation=False),
    # The same four times as long.
    Arm("centralised, long", pooled=True, batch_size=_POOLED_BATCH, steps=LONG),
    Arm("FedProx, long", steps=LONG, seeds=1),
    Arm("FedProx, server momentum, long", strategy="fedavgm", steps=LONG),
    # What single choices do: one seed.
    Arm("centralised, batches of one site", pooled=True, steps=LONG, seeds=1),
    Arm("FedProx, optimizer state reset", keep_optimizer=False, seeds=1),
    Arm("FedProx, 5 local steps", local_steps=5, seeds=1),
    Arm("FedProx, 40 local steps", local_steps=40, seeds=1),
    Arm("FedProx, 50 % participation", fraction_fit=0.5, seeds=1),
    Arm("FedProx, one site with corrupt video", corrupt="site-d", seeds=1),
    Arm("FedProx, SCAFFOLD", scaffold=True, seeds=1),
    Arm("FedAdam", strategy="fedadam", server_learning_rate=2e-3, server_momentum=0.9, seeds=1),
)
