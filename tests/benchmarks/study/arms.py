"""What is compared. All arms but one take the same number of optimizer steps, over all their sites."""

from dataclasses import dataclass

__all__ = ["ARMS", "BATCH_SIZE", "SITES", "TOTAL_STEPS", "Arm"]

SITES = ("site-a", "site-b", "site-c", "site-d")
TOTAL_STEPS = 1600
BATCH_SIZE = 8


@dataclass(frozen=True)
class Arm:
    """One way of training."""

    name: str
    sites: tuple[str, ...] = SITES
    pooled: bool = False  # one learner that sees the data of all `sites`
    local_steps: int = 20
    proximal_mu: float = 0.0
    fraction_fit: float = 1.0
    shared_normalisation: bool = True
    keep_optimizer: bool = False  # AdamW's state from round to round, at each site
    strategy: str = "fedprox"
    corrupt: str = ""  # the site with a damaged video
    total_steps: int = TOTAL_STEPS

    @property
    def num_rounds(self) -> int:
        """As many as make `total_steps` over all sites that train."""
        learners = 1 if self.pooled else max(1, round(len(self.sites) * self.fraction_fit))
        return self.total_steps // (self.local_steps * learners)


ARMS = (
    Arm("centralised", pooled=True, local_steps=80),
    # As many in a row as each federated site takes: what pooling the data is worth, without the longer walk.
    Arm("centralised, 400 steps", pooled=True, local_steps=20, total_steps=TOTAL_STEPS // len(SITES)),
    Arm("FedAvg"),
    Arm("FedProx mu=0.001", proximal_mu=0.001),
    Arm("FedProx mu=0.01", proximal_mu=0.01),
    Arm("FedProx mu=0.1", proximal_mu=0.1),
    *(Arm(f"{site} alone", sites=(site,), pooled=True, local_steps=80) for site in SITES),
    Arm("FedProx, each site's own normalisation", proximal_mu=0.001, shared_normalisation=False),
    Arm("FedProx, optimizer state kept", proximal_mu=0.001, keep_optimizer=True),
    Arm("FedProx, 5 local steps", proximal_mu=0.001, local_steps=5),
    Arm("FedProx, 80 local steps", proximal_mu=0.001, local_steps=80),
    Arm("FedProx, 50 % participation", proximal_mu=0.001, fraction_fit=0.5),
    Arm("FedProx, one site with corrupt video", proximal_mu=0.001, corrupt="site-d"),
    Arm("FedAvgM", strategy="fedavgm"),
    Arm("FedAdam", strategy="fedadam"),
)
