// The two neurons under pm2. Arguments come from the environment, so this file needs no edit.
//
//   export VALIDATOR_ARGS="--netuid 96 --wallet.name my_coldkey --wallet.hotkey my_hotkey"
//   pm2 start contrib/ecosystem.config.js --only validator
//
//   export MINER_ARGS="--netuid 96 --wallet.name my_coldkey --hf_repo_id me/my-dataset --dataset_path data.jsonl --yes"
//   pm2 start contrib/ecosystem.config.js --only miner
//
// More than one of a kind: VALIDATOR_ARGS_TWO is the arguments of another validator, named validator-two.
//
// A file .env in the clone may hold these variables, HF_TOKEN and others; exported ones come first. Spaces separate
// arguments; double or single quotes keep spaces inside one. VENV names another environment than .venv.
// docs/operator.md explains the exit codes and which secrets `pm2 save` writes to disk.
const fs = require("fs");
const path = require("path");

const root = path.resolve(__dirname, "..");

const settings = path.join(root, ".env");
if (fs.existsSync(settings)) process.loadEnvFile(settings);

const readArguments = (name) =>
  Array.from((process.env[name] || "").matchAll(/(?:"[^"]*"|'[^']*'|[^\s"'])+/g), ([word]) =>
    word.replace(/"([^"]*)"|'([^']*)'/g, "$1$2"),
  );

// Wrong arguments and wrong settings (template/errors.py): only the operator can correct them. pm2 shows
// "waiting restart" with pid 0 and does not restart.
const OPERATOR_MUST_ACT = [2, 3];

const common = {
  cwd: root,
  // Completes an interrupted installation, then replaces itself by the neuron.
  script: path.join(root, "contrib", "start.sh"),
  interpreter: "bash",
  env: { VENV: path.resolve(root, process.env.VENV || ".venv"), PYTHONUNBUFFERED: "1" },
  exec_mode: "fork",
  // One log file for stdout and one for stderr in ~/.pm2/logs, without pm2's process number in the name.
  merge_logs: true,
  // Otherwise pm2 reads the git repository at each start, while --auto_update may write to it.
  vizion: false,
  // Milliseconds from SIGINT to SIGKILL: evaluations end at once, but an extrinsic in flight needs time.
  kill_timeout: 120000,
  // Signal the neuron only: its children end with it, wandb after sending the rest.
  treekill: false,
  // Milliseconds before the first restart. pm2 increases them up to 15 s while runs last less than 30 s.
  exp_backoff_restart_delay: 1000,
  // Restart without limit: an outage of the chain or the Hub ends eventually.
  min_uptime: 1000,
  max_restarts: Number.MAX_SAFE_INTEGER,
};

// The process `kind`, and one for each further variable such as VALIDATOR_ARGS_TWO.
const makeApps = (kind, stopExitCodes) => {
  const first = `${kind.toUpperCase()}_ARGS`;
  const others = Object.keys(process.env).filter((name) => name.startsWith(`${first}_`));
  return [first, ...others.sort()].map((name) => ({
    ...common,
    name: kind + name.slice(first.length).toLowerCase().replace(/_/g, "-"),
    args: [`neurons/${kind}.py`, ...readArguments(name)],
    stop_exit_codes: stopExitCodes,
  }));
};

module.exports = {
  apps: [
    // 0 restarts, because pm2 reports it for a process that the kernel killed (out of memory). 10 restarts, because
    // a release was installed.
    // 7: the subnet is gone.
    ...makeApps("validator", [...OPERATOR_MUST_ACT, 7]),
    // 0: the dataset is published. 6: a validator would reject the dataset, so a restart cannot help.
    ...makeApps("miner", [0, ...OPERATOR_MUST_ACT, 6]),
  ],
};
