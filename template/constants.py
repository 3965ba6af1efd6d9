"""Protocol constants: what every validator and miner of the subnet must agree on.

Limits are generous for honest files and small enough that a hostile one costs little.
"""

# The evaluation set: the revision of `Competition.repo` that every score is measured on.
eval_commit = "784fbf1e78d16c512750e3bb5391fa6b338818ae"

# More shared rows than this with an earlier-committed submission make a submission its duplicate.
DEFAULT_DUPLICATE_COUNT = 100

# A weight below this is zero.
MIN_WEIGHT = 1e-6

# Sent with every weight setting, so that the subnet's owner can ask for newer validators: the package's version as
# 1,000,000 major + 1,000 minor + patch.
WEIGHTS_VERSION = 3000

# Raised with every release in which the same inputs give another loss: losses of two such releases are not compared,
# and everything is scored anew. 2: the dropout's draws, and sums in another order. 3: what a row spells of the chat
# format stays text.
LOSS_VERSION = 3

# Tokens of one row that are read; the rest is cut.
MAX_TOKENS = 2048

# One commitment is one Raw field of the chain's Commitments pallet (Raw0..Raw128).
MAX_COMMITMENT_BYTES = 128

# The one file of a submission, and of an evaluation set once it is downloaded.
DATA_FILE = "data.jsonl"

# Limits on a miner's file.
MAX_SUBMISSION_BYTES = 16 * 2**20
MAX_SUBMISSION_ROWS = 10_000

# Limits on the subnet owner's evaluation file.
MAX_EVAL_SET_BYTES = 512 * 2**20
MAX_EVAL_SET_ROWS = 1_000_000

# Limits on any row of either.
MAX_ROW_BYTES = 256 * 2**10
MAX_ROW_MESSAGES = 512
MAX_JSON_DEPTH = 16

# Seconds that one dataset download may take, from the first byte asked for to the last one read.
DOWNLOAD_DEADLINE_S = 120.0
EVAL_SET_DOWNLOAD_DEADLINE_S = 1800.0

# Blocks after its reveal by which the file of a content-addressed commitment must be on the Hub: an hour.
SEAL_GRACE_BLOCKS = 300

# Seconds between two blocks of the chain: its own constant, for turning blocks into times.
BLOCK_S = 12
