// What hyperbee writes for given operations. `node bee.js make` writes bee.json. `node bee.js` takes from the standard input, a line
// each, blocks of a bee (hex) and operations; it goes on from those blocks, and answers with all blocks and all entries.
const fs = require('fs')
const os = require('os')
const path = require('path')
const b4a = require('b4a')
const crypto = require('hypercore-crypto')
const Hypercore = require('hypercore')
const Hyperbee = require('hyperbee')

// The same numbers as in tests/bee.rs.
function random (seed) {
  let state = seed
  return function (below) {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    state >>>= 0
    return state % below
  }
}

// One operation on a bee or on a batch.
async function operate (on, next, keys) {
  const key = b4a.from('k' + next(keys))
  const kind = next(10)
  const value = next(20) === 0 ? null : b4a.from('v' + next(1000))
  if (kind < 5) return on.put(key, value)
  if (kind < 8) return on.del(key)
  const even = next(2)
  const cas = (prev) => prev.seq % 2 === even
  if (kind < 9) return on.put(key, value, { cas })
  return on.del(key, { cas })
}

// `count` operations over `keys` keys, in batches of 1 (no batch) to `batch`. Answers the versions between them: within a batch there is
// none, as the roots there are not written.
async function run (bee, { seed, count, keys, batch }) {
  const next = random(seed)
  const versions = [1]
  for (let done = 0; done < count;) {
    const size = 1 + next(batch)
    if (size === 1) {
      await operate(bee, next, keys)
    } else {
      const b = bee.batch()
      for (let i = 0; i < size; i++) await operate(b, next, keys)
      await b.flush()
    }
    done += size
    versions.push(bee.version)
  }
  return versions
}

async function open (opts) {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'bee-'))
  const core = new Hypercore(dir)
  await core.ready()
  return { core, bee: new Hyperbee(core, { extension: false, ...opts }), dir }
}

async function close ({ core, dir }) {
  await core.close()
  fs.rmSync(dir, { recursive: true })
}

async function blocksOf (core) {
  const blocks = []
  for (let i = 0; i < core.length; i++) blocks.push(await core.get(i))
  return blocks
}

const hex = (b) => b === null ? null : b4a.toString(b, 'hex')

function digest (blocks) {
  return blocks.map((b) => hex(crypto.hash(b).subarray(0, 4))).join('')
}

async function entries (bee, range) {
  const all = []
  for await (const { seq, key, value } of bee.createReadStream(range)) all.push([seq, hex(key), hex(value)])
  return all
}

async function diff (bee, since, range) {
  const all = []
  for await (const { left, right } of bee.createDiffStream(since, range)) {
    all.push([left && left.seq, right && right.seq, hex((left || right).key)])
  }
  return all
}

async function scenario (name, ops, opts = {}, small = false) {
  const at = await open(opts)
  const versions = await run(at.bee, ops)
  const blocks = await blocksOf(at.core)
  const since = versions[Math.floor(versions.length * 0.9)]
  const half = versions[versions.length >> 1]
  const range = { gte: b4a.from('k2'), lt: b4a.from('k7') }
  const history = []
  for await (const { type, seq } of at.bee.createHistoryStream()) history.push([type, seq])
  const result = {
    name,
    ops,
    always_duplicate: opts.alwaysDuplicate !== false,
    blocks: small ? blocks.map(hex) : null,
    digest: digest(blocks),
    entries: await entries(at.bee),
    reverse: await entries(at.bee, { gt: b4a.from('k3'), lte: b4a.from('k6'), reverse: true, limit: 7 }),
    half,
    past: await entries(at.bee.checkout(half)),
    since,
    diff: await diff(at.bee, since),
    diff_range: await diff(at.bee, half, range),
    history: history.filter(([type]) => type === 'del').map(([, seq]) => seq)
  }
  await close(at)
  return result
}

async function subs () {
  const at = await open({ metadata: { contentFeed: b4a.alloc(32, 7), userData: b4a.from('mine') } })
  const users = at.bee.sub('users')
  const roles = users.sub('roles')
  const odd = at.bee.sub('odd', { sep: '!!' })
  await users.put('ada', 'one')
  await roles.put('ada', 'two')
  await odd.put('x', 'three')
  await odd.sub('in').put('y', 'four')
  await at.bee.put('users', 'five')
  const blocks = await blocksOf(at.core)
  const result = { blocks: blocks.map(hex), users: await entries(users), roles: await entries(roles) }
  await close(at)
  return result
}

async function make () {
  const golden = {
    scenarios: [
      await scenario('single', { seed: 1, count: 60, keys: 30, batch: 1 }, {}, true),
      await scenario('small batches', { seed: 2, count: 120, keys: 40, batch: 7 }, {}, true),
      await scenario('no duplicates', { seed: 3, count: 400, keys: 20, batch: 5 }, { alwaysDuplicate: false }),
      await scenario('few keys', { seed: 4, count: 3000, keys: 25, batch: 12 }),
      await scenario('many keys', { seed: 5, count: 6000, keys: 1500, batch: 60 }),
      await scenario('single many', { seed: 6, count: 3000, keys: 700, batch: 1 })
    ],
    subs: await subs()
  }
  fs.writeFileSync(path.join(__dirname, 'bee.json'), JSON.stringify(golden) + '\n')
}

async function serve () {
  for await (const line of require('readline').createInterface({ input: process.stdin })) {
    const { blocks, ops } = JSON.parse(line)
    const at = await open({})
    if (blocks.length) await at.core.append(blocks.map((b) => b4a.from(b, 'hex')))
    const before = await entries(at.bee)
    await run(at.bee, ops)
    const result = { before, blocks: (await blocksOf(at.core)).map(hex), entries: await entries(at.bee) }
    await close(at)
    console.log(JSON.stringify(result))
  }
}

(process.argv[2] === 'make' ? make() : serve()).catch((error) => {
  console.error(error)
  process.exit(1)
})
