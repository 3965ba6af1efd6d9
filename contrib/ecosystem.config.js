// pm2's description of the two neurons. Fill in the arguments below, then, from anywhere:
//
//   pm2 start contrib/ecosystem.config.js --only validator
//   pm2 start contrib/ecosystem.config.js --only miner
//
// As they stand, the words in capitals are refused at once (exit code 2) and pm2 lets the process rest.
// Secrets (HF_TOKEN) come from the environment that pm2 is started from, never from this file.
const path = require("path");

const root = path.resolve(__dirname, "..");

const VALIDATOR_ARGS = [
  "--netuid", "NETUID",
  "--subtensor.network", "finney",
  "--wallet.name", "WALLET",
  "--wallet.hotkey", "HOTKEY",
];

const MINER_ARGS = [
  "--netuid", "NETUID",
  "--subtensor.network", "finney",
  "--wallet.name", "WALLET",
  "--wallet.hotkey", "HOTKEY",
  "--hf_repo_id", "OWNER/DATASET",
  "--dataset_path", "FILE",
];

// What only the operator can put right: wrong arguments and wrong configuration (template/errors.py).
const OPERATOR_MUST_ACT = [2, 3];

const common = {
  cwd: root,
  interpreter: path.join(root, ".venv", "bin", "python"),
  exec_mode: "fork",
  // Between the signal and the kill: time to finish or abandon a score and to record it.
  kill_timeout: 120000,
  // The first wait after a failure, in milliseconds; pm2 lengthens it up to 15 s while failures go on.
  exp_backoff_restart_delay: 1000,
};

module.exports = {
  apps: [
    {
      ...common,
      name: "validator",
      script: path.join(root, "neurons", "validator.py"),
      args: VALIDATOR_ARGS,
      // Not 0: to pm2 a process that the kernel killed (out of memory) ended with 0, and it must come back.
      stop_exit_codes: OPERATOR_MUST_ACT,
    },
    {
      ...common,
      name: "miner",
      script: path.join(root, "neurons", "miner.py"),
      args: MINER_ARGS,
      // 0: published, the work is done. 6: the dataset itself was refused, and would be again.
      stop_exit_codes: [0, ...OPERATOR_MUST_ACT, 6],
    },
  ],
};
