"""What the error code of a reply says: by SuperLink, by a site's consent, or by its ClientApp."""

from flwr.common.constant import ErrorCode

from federation.errors import RejectionCode

__all__ = ["LOST", "rejection_code"]

LOST = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE)
# What a site may report of itself. The others are the server's to find, above all `NORM`, which is no strike.
_CODES_OF_SITES = (
    RejectionCode.NON_FINITE,
    RejectionCode.FROZEN_WEIGHTS,
    RejectionCode.OWNER_RULE,
    RejectionCode.DATASET,
)


def rejection_code(number: int) -> RejectionCode:
    """Return the code that an update is rejected with whose reply is the error `number`."""
    if number == ErrorCode.CLIENT_APP_RAISED_EXCEPTION:  # by the site's consent: our ClientApp raises nothing
        return RejectionCode.APP_REFUSED
    return next((code for code in _CODES_OF_SITES if code == number), RejectionCode.NODE_FAILED)
