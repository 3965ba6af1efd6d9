// pm2's description of the two neurons. Nothing here needs an edit: their arguments come from the environment.
//
//   export VALIDATOR_ARGS="--netuid 96 --wallet.name my_coldkey --wallet.hotkey my_hotkey"
//   pm2 start contrib/ecosystem.config.js --only validator
//
//   export MINER_ARGS="--netuid 96 --wallet.name my_coldkey --hf_repo_id me/my-dataset --dataset_path data.jsonl --yes"
//   pm2 start contrib/ecosystem.config.js --only miner
//
// Blanks part arguments; quotes, double or single, keep them inside one. VENV names another environment than .venv.
// What an exit code means and what `pm2 save` writes down: docs/operator.md.
const path = require("path");

const root = path.resolve(__dirname, "..");

const readArguments = (name) =>
  Array.from((process.env[name] || "").matchAll(/(?:"[^"]*"|'[^']*'|[^\s"'])+/g), ([word]) =>
    word.replace(/"([^"]*)"|'([^']*)'/g, "$1$2"),
  );

// What only the operator can put right: wrong arguments and wrong configuration (template/errors.py). pm2 then shows
// "waiting restart" with a pid of 0, and never restarts.
const OPERATOR_MUST_ACT = [2, 3];

const common = {
  cwd: root,
  // Completes an installation that was killed halfway, then becomes the neuron itself.
  script: path.join(root, "contrib", "start.sh"),
  interpreter: "bash",
  env: { VENV: path.resolve(root, process.env.VENV || ".venv"), PYTHONUNBUFFERED: "1" },
  exec_mode: "fork",
  // One log for each of stdout and stderr under ~/.pm2/logs, whatever number pm2 gives the process.
  merge_logs: true,
  // pm2 would read the git repository at each start, which --auto_update may be writing.
  vizion: false,
  // Milliseconds between the signal and the kill: a score is abandoned at once, an extrinsic in hand is awaited.
  kill_timeout: 120000,
  // The neuron alone is signalled: what it started ends by itself when it does, wandb after it has sent the rest.
  treekill: false,
  // Milliseconds before the first restart; pm2 lengthens it up to 15 s while the process lives for less than 30 s.
  exp_backoff_restart_delay: 1000,
  // Never given up: what ends a neuron again and again, the chain or the Hub, passes.
  min_uptime: 1000,
  max_restarts: Number.MAX_SAFE_INTEGER,
};

module.exports = {
  apps: [
    {
      ...common,
      name: "validator",
      args: ["neurons/validator.py", ...readArguments("VALIDATOR_ARGS")],
      // Not 0: to pm2 a process that the kernel killed (out of memory) ended with 0, and it must come back. Not 10
      // either: the validator has installed a release and asks to be started again.
      stop_exit_codes: OPERATOR_MUST_ACT,
    },
    {
      ...common,
      name: "miner",
      args: ["neurons/miner.py", ...readArguments("MINER_ARGS")],
      // 0: published, the work is done. 6: the dataset itself was refused, and would be again.
      stop_exit_codes: [0, ...OPERATOR_MUST_ACT, 6],
    },
  ],
};
