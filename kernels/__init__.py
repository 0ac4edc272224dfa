"""One folder per operator. ROOMS is the one list of them."""

ROOMS = ["segment_sum"]
