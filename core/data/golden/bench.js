// What the JavaScript stack costs on this disk: prints one line of JSON. `node bench.js DIR`.
// The same work as edge/host/examples/data_bench.rs. A hypercore does not sync the disk at each append.
const Corestore = require('corestore')
const path = require('path')

function perSecond (count, since) {
  return count / (Number(process.hrtime.bigint() - since) / 1e9)
}

function scattered (count, below) {
  let state = 1n
  const numbers = []
  for (let n = 0; n < count; n++) {
    state = (state * 6364136223846793005n + 1442695040888963407n) & ((1n << 64n) - 1n)
    numbers.push(Number((state >> 33n) % BigInt(below)))
  }
  return numbers
}

async function appends (core, count, batch) {
  await core.ready()
  const block = Buffer.alloc(100, 7)
  const blocks = new Array(batch).fill(block)
  const since = process.hrtime.bigint()
  for (let n = 0; n < count / batch; n++) await core.append(batch === 1 ? block : blocks)
  return perSecond(count, since)
}

async function main () {
  const store = new Corestore(path.join(process.argv[2], 'js'))
  await store.ready()
  const answer = {}
  answer['append single'] = await appends(store.get({ name: 'a' }), 20000, 1)
  answer['append batch 100'] = await appends(store.get({ name: 'b' }), 100000, 100)
  const core = store.get({ name: 'c' })
  answer['append batch 1000'] = await appends(core, 100000, 1000)
  let wanted = scattered(50000, 100000)
  let since = process.hrtime.bigint()
  for (const index of wanted) await core.get(index)
  answer['get serial'] = perSecond(wanted.length, since)
  wanted = scattered(200000, 100000)
  since = process.hrtime.bigint()
  for (let at = 0; at < wanted.length; at += 64) await Promise.all(wanted.slice(at, at + 64).map((index) => core.get(index)))
  answer['get 64'] = perSecond(wanted.length, since)
  await store.close()
  console.log(JSON.stringify(answer))
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
