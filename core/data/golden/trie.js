// What hypertrie writes for given operations. hypertrie 5 wants hypercore 9, which no longer replicates with today's; here it runs on
// hypercore 11 through a thin adapter with the callbacks of the old one. `node trie.js make` writes trie.json. `node trie.js` takes from
// the standard input, a line each, blocks of a trie (hex) and operations; it goes on from those blocks, and answers with all blocks.
const fs = require('fs')
const os = require('os')
const path = require('path')
const { EventEmitter } = require('events')
const b4a = require('b4a')
const crypto = require('hypercore-crypto')
const Hypercore = require('hypercore')
const hypertrie = require('hypertrie')

class Feed extends EventEmitter {
  constructor (core) {
    super()
    this.core = core
    this.sparse = false
  }

  get length () { return this.core.length }
  get writable () { return this.core.writable }
  get key () { return this.core.key }
  get discoveryKey () { return this.core.discoveryKey }
  ready (cb) { this.core.ready().then(() => cb(null), cb) }
  registerExtension () { return null }

  get (seq, opts, cb) {
    if (typeof opts === 'function') cb = opts
    this.core.get(seq).then((block) => cb(null, b4a.from(block)), cb)
  }

  append (blocks, cb = () => {}) {
    this.core.append(blocks).then(() => { this.emit('append'); cb(null) }, cb)
  }
}

// The same numbers as in tests/trie.rs.
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

const call = (on, name, ...args) => new Promise((resolve, reject) => on[name](...args, (err, res) => err ? reject(err) : resolve(res)))
const hex = (b) => b === null ? null : b4a.toString(b, 'hex')

function operation (next, keys) {
  let key = 'k' + next(keys)
  const depth = next(3)
  for (let i = 0; i < depth; i++) key = 'd' + next(4) + '/' + key
  if (next(10) === 0) key = '/' + key
  if (next(3) === 0) return { type: 'del', key }
  return { type: 'put', key, value: next(20) === 0 ? null : b4a.from('v' + next(1000)) }
}

async function run (trie, { seed, count, keys, batch }) {
  const next = random(seed)
  for (let done = 0; done < count;) {
    const size = 1 + next(batch)
    const ops = []
    for (let i = 0; i < size; i++) ops.push(operation(next, keys))
    if (size > 1) await call(trie, 'batch', ops)
    else if (ops[0].type === 'del') await call(trie, 'del', ops[0].key, {})
    else await call(trie, 'put', ops[0].key, ops[0].value, {})
    done += size
  }
}

async function open (opts) {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'trie-'))
  const core = new Hypercore(dir)
  await core.ready()
  return { core, dir, trie: (blocks) => hypertrie(null, null, { feed: new Feed(core), extension: false, ...opts }) }
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

const row = (node) => node && [node.seq, node.key, hex(node.value), node.flags]
const rows = async (trie, prefix, opts) => (await call(trie, 'list', prefix, opts)).map(row)

function all (iterator) {
  return new Promise((resolve, reject) => {
    const found = []
    iterator.next(function loop (err, value) {
      if (err) return reject(err)
      if (!value) return resolve(found)
      found.push(value)
      iterator.next(loop)
    })
  })
}

const diff = async (trie, since, prefix) => (await all(trie.diff(since, prefix))).map(({ key, left, right }) => [key, left && left.seq, right && right.seq])

async function scenario (name, ops, small) {
  const at = await open({})
  const trie = at.trie()
  await call(trie, 'ready')
  await run(trie, ops)
  const blocks = await blocksOf(at.core)
  const half = at.core.length >> 1
  const result = {
    name,
    ops,
    blocks: small ? blocks.map(hex) : null,
    digest: blocks.map((b) => hex(crypto.hash(b).subarray(0, 4))).join(''),
    list: await rows(trie, '', {}),
    reverse: await rows(trie, 'd1', { reverse: true }),
    shallow: await rows(trie, '', { recursive: false }),
    gt: await rows(trie, 'd1/k1', { gt: true }),
    half,
    past: await rows(trie.checkout(half), '', {}),
    diff: await diff(trie, half, ''),
    diff_prefix: await diff(trie, 1, 'd2')
  }
  await close(at)
  return result
}

async function hidden () {
  const at = await open({ metadata: b4a.from('mine'), subtype: 'sub' })
  const trie = at.trie()
  await call(trie, 'ready')
  await call(trie, 'put', 'a', b4a.from('seen'), {})
  await call(trie, 'put', 'a', b4a.from('hidden'), { hidden: true, flags: 3 })
  await call(trie, 'put', 'b/c', b4a.from('more'), { flags: 5 })
  await call(trie, 'del', 'a', { hidden: true })
  await call(trie, 'put', 'x', b4a.from('again'), { hidden: true })
  const blocks = (await blocksOf(at.core)).map(hex)
  const result = { blocks, list: await rows(trie, '', {}), hidden: await rows(trie, '', { hidden: true }) }
  await close(at)
  return result
}

async function make () {
  const golden = {
    scenarios: [
      await scenario('single', { seed: 1, count: 60, keys: 12, batch: 1 }, true),
      await scenario('batches', { seed: 2, count: 200, keys: 20, batch: 6 }, true),
      await scenario('few keys', { seed: 3, count: 800, keys: 3, batch: 3 }),
      await scenario('many keys', { seed: 4, count: 3000, keys: 900, batch: 40 })
    ],
    hidden: await hidden()
  }
  fs.writeFileSync(path.join(__dirname, 'trie.json'), JSON.stringify(golden) + '\n')
}

async function serve () {
  for await (const line of require('readline').createInterface({ input: process.stdin })) {
    const { blocks, ops } = JSON.parse(line)
    const at = await open({})
    if (blocks.length) await at.core.append(blocks.map((b) => b4a.from(b, 'hex')))
    const trie = at.trie()
    await call(trie, 'ready')
    const before = await rows(trie, '', {})
    await run(trie, ops)
    const result = { before, blocks: (await blocksOf(at.core)).map(hex), list: await rows(trie, '', {}) }
    await close(at)
    console.log(JSON.stringify(result))
  }
}

(process.argv[2] === 'make' ? make() : serve()).catch((error) => {
  console.error(error)
  process.exit(1)
})
