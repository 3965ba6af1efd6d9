"""Protocol constants on which all validators and miners of the subnet must agree."""

# Revision of `Competition.repo` that holds the evaluation set.
eval_commit = "784fbf1e78d16c512750e3bb5391fa6b338818ae"

# A submission is a duplicate if more than this part of its different rows is in one earlier submission.
MAX_SHARED_PERCENT = 40

# Smaller weights are set to zero.
MIN_WEIGHT = 1e-6

# `version_key` of set_weights, by which the subnet's owner can require newer validators: the package version as
# 1,000,000 major + 1,000 minor + patch.
WEIGHTS_VERSION = 6000

# Incremented, by type of device, with every release that changes the loss of the same inputs: all datasets are then
# evaluated again. 2: dropout stream and order of sums. 3: control tokens in a row's own text are tokenized as plain
# text. 4: rows are sorted before the seed shuffles them. 5, for CPUs only: rows of a pack share prefixes in training;
# fused AdamW.
LOSS_VERSIONS = {"cpu": 5, "cuda": 4}

# Rows are truncated to this many tokens.
MAX_TOKENS = 2048

# Size of a Raw field in the chain's Commitments pallet (Raw0..Raw128).
MAX_COMMITMENT_BYTES = 128

# File name of a submission, and of the evaluation set after download.
DATA_FILE = "data.jsonl"

# Limits on a submission.
MAX_SUBMISSION_BYTES = 16 * 2**20
MAX_SUBMISSION_ROWS = 10_000

# Limits on the evaluation set.
MAX_EVAL_SET_BYTES = 512 * 2**20
MAX_EVAL_SET_ROWS = 1_000_000

# Limits on a row of either file.
MAX_ROW_BYTES = 256 * 2**10
MAX_ROW_MESSAGES = 512
MAX_JSON_DEPTH = 16

# Deadlines in seconds for one download, from the first request to the last byte.
DOWNLOAD_DEADLINE_S = 120.0
EVAL_SET_DOWNLOAD_DEADLINE_S = 1800.0

# Blocks after the reveal within which a content-addressed file must be on the Hub: one hour.
SEAL_GRACE_BLOCKS = 300

# Block time of the chain in seconds.
BLOCK_S = 12

# Age in seconds of a node's newest block from which on the node is not believed at a start, and a validator is reported
# as not serving: 75 blocks. A clock that NTP sets is right to a second.
MAX_HEAD_AGE_S = 900.0

# Regular expression of a hotkey's address.
HOTKEY_PATTERN = "[1-9A-HJ-NP-Za-km-z]{46,49}"

# Blocks from the first one of its era for which a signed call is valid: a power of two. In later ones it cannot land.
ERA_BLOCKS = 32

# Blocks of a day.
DAY_BLOCKS = 7200

# In the message of a dataset that is evaluated no more before it is confirmed.
DROPPED_MARK = ", dropped: "
