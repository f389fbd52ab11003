"""Names of the messages and of the records in them; both sides spell them from here."""

__all__ = [
    "ANSWER",
    "CONFIG",
    "DELIVERY_SECONDS",
    "HEADER",
    "JOIN_SECONDS",
    "LAST_UPDATE",
    "METRICS",
    "QUERY_DELIVER",
    "QUERY_JOIN",
    "QUERY_SHUT_OUT",
    "REASON",
    "SETTINGS",
    "STATISTICS",
    "TRAIN",
    "UPDATE",
    "WEIGHTS",
]

QUERY_JOIN = "query.join"  # server -> node: who are you, what data do you hold?
QUERY_SHUT_OUT = "query.shut_out"  # server -> node: why it takes no part, for its log
JOIN_SECONDS = 180.0  # that a node has to answer QUERY_JOIN; it may have to look at its samples first
QUERY_DELIVER = "query.deliver"  # server -> node: the policy of a run that is over
DELIVERY_SECONDS = 900.0  # that a node has to answer QUERY_DELIVER: 400 MB at 4 Mbit/s
TRAIN = "train"  # server -> node: train from these weights

# Records of a TRAIN message
WEIGHTS = "weights"  # ArrayRecord: the global trainable weights
STATISTICS = "statistics"  # ArrayRecord: the normalisation of the federation; also in the join answer
CONFIG = "config"  # ConfigRecord: run name, round, fingerprint of the frozen weights
HEADER = "header"  # ConfigRecord: what the encoded arrays say of themselves; beside WEIGHTS and UPDATE
LAST_UPDATE = "last_update"  # ConfigRecord: `text`, what became of this node's last update; empty: none yet

# A DELIVER message holds WEIGHTS, STATISTICS, HEADER and LAST_UPDATE too, all tensors in fp32, and in CONFIG
# the SHA-256 of the exported file and the model card.
SETTINGS = "settings"  # ConfigRecord: the configuration of the run that the policy is from

# Record of a SHUT_OUT message
REASON = "reason"  # ConfigRecord: `text`, one line

# Records of the answers
ANSWER = "answer"  # ConfigRecord: what a node says of itself when it joins
UPDATE = "update"  # ArrayRecord: trained weights minus received weights
METRICS = "metrics"  # MetricRecord: examples, losses, times
