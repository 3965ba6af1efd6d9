// Commit `hello` as the account of a secret uri, and print what was read and what happened, as JSON.
//
//   node polkadot_api.mjs ws://127.0.0.1:9944 7 //miner
import { ApiPromise, Keyring, WsProvider } from '@polkadot/api';

const [url, netuid, uri] = process.argv.slice(2);
const api = await ApiPromise.create({ provider: new WsProvider(url), noInitWarn: true });
const header = await api.rpc.chain.getHeader();
const hash = await api.rpc.chain.getBlockHash(header.number.unwrap());
const key = new Keyring({ type: 'sr25519' }).addFromUri(uri);
const call = api.tx.commitments.setCommitment(netuid, { fields: [{ Raw5: '0x68656c6c6f' }] });
const events = await new Promise((resolve, reject) => {
  call.signAndSend(key, ({ events, status }) => {
    if (status.isFinalized) resolve(events.map(({ event }) => `${event.section}.${event.method}`));
  }).catch(reject);
});
const record = await api.query.commitments.commitmentOf(netuid, key.address);
const tempo = (await api.query.subtensorModule.tempo(netuid)).toNumber();
const fields = record.toHuman().info.fields;
console.log(JSON.stringify({ is_own_hash: header.hash.eq(hash), tempo, events, fields }));
await api.disconnect();
