// What hyperbee, LevelDB and hyperdrive cost on this disk: `node bench-databases.js DIR` works once in a fresh directory and prints one line
// of JSON. The work is that of edge/host/examples/data_databases.rs.
const path = require('path')
const b4a = require('b4a')
const Hypercore = require('hypercore')
const Hyperbee = require('hyperbee')
const Hyperdrive = require('hyperdrive')
const Corestore = require('corestore')
const { ClassicLevel } = require('classic-level')

const SINGLE = 5000
const BATCHED = 50000
const BATCH = 1000
const GETS = 20000
const LARGE = 256 * 2 ** 20
const CHUNK = 65536
const FILES = 2000

const dir = process.argv[2]
const key = (at) => 'key' + String((at * 7919) % 100003).padStart(8, '0')
const value = b4a.alloc(100, 'v')

async function timed (count, work) {
  const started = process.hrtime.bigint()
  await work()
  return count / (Number(process.hrtime.bigint() - started) / 1e9)
}

async function bees (told) {
  const single = new Hyperbee(new Hypercore(path.join(dir, 'single')), { extension: false })
  await single.ready()
  told['bee put'] = await timed(SINGLE, async () => {
    for (let at = 0; at < SINGLE; at++) await single.put(key(at), value)
  })
  await single.close()
  const core = new Hypercore(path.join(dir, 'batched'))
  const bee = new Hyperbee(core, { extension: false })
  await bee.ready()
  told['bee batch of 1,000'] = await timed(BATCHED, async () => {
    for (let first = 0; first < BATCHED; first += BATCH) {
      const batch = bee.batch()
      for (let at = first; at < first + BATCH; at++) await batch.put(key(at), value)
      await batch.flush()
    }
  })
  // Readers that have decoded nothing yet.
  const reader = new Hyperbee(core.session(), { extension: false })
  await reader.ready()
  told['bee get'] = await timed(GETS, async () => {
    for (let at = 0; at < GETS; at++) if (!await reader.get(key((at * 31) % BATCHED))) throw new Error('a key is gone')
  })
  const lister = new Hyperbee(core.session(), { extension: false })
  await lister.ready()
  let count = 0
  told['bee iterate'] = await timed(BATCHED, async () => {
    for await (const _ of lister.createReadStream()) count++ // eslint-disable-line
  })
  if (count !== BATCHED) throw new Error('the bee does not have all its keys')
  await core.close()
}

async function level (told) {
  const options = { keyEncoding: 'utf8', valueEncoding: 'buffer' }
  const single = new ClassicLevel(path.join(dir, 'level-single'), options)
  told['level put'] = await timed(SINGLE, async () => {
    for (let at = 0; at < SINGLE; at++) await single.put(key(at), value)
  })
  await single.close()
  const db = new ClassicLevel(path.join(dir, 'level'), options)
  told['level batch of 1,000'] = await timed(BATCHED, async () => {
    for (let first = 0; first < BATCHED; first += BATCH) {
      const batch = []
      for (let at = first; at < first + BATCH; at++) batch.push({ type: 'put', key: key(at), value })
      await db.batch(batch)
    }
  })
  told['level get'] = await timed(GETS, async () => {
    for (let at = 0; at < GETS; at++) if (!await db.get(key((at * 31) % BATCHED))) throw new Error('a key is gone')
  })
  told['level iterate'] = await timed(BATCHED, async () => {
    for await (const _ of db.iterator()) ; // eslint-disable-line
  })
  await db.close()
}

async function drives (told) {
  const drive = new Hyperdrive(new Corestore(path.join(dir, 'drive')))
  await drive.ready()
  const chunk = b4a.alloc(CHUNK)
  for (let at = 0; at < CHUNK; at++) chunk[at] = (at * 31) & 255
  told['drive write, MB/s'] = await timed(LARGE / 2 ** 20, async () => {
    const ws = drive.createWriteStream('/large')
    for (let bytes = 0; bytes < LARGE; bytes += CHUNK) {
      if (!ws.write(chunk)) await new Promise((resolve) => ws.once('drain', resolve))
    }
    ws.end()
    await new Promise((resolve, reject) => { ws.on('close', resolve); ws.on('error', reject) })
  })
  let bytes = 0
  told['drive read, MB/s'] = await timed(LARGE / 2 ** 20, async () => {
    for await (const data of drive.createReadStream('/large')) bytes += data.byteLength
  })
  if (bytes !== LARGE) throw new Error('the file came back shorter')
  const name = (at) => '/dir' + (at % 10) + '/file' + at
  told['4 KiB files put'] = await timed(FILES, async () => {
    for (let at = 0; at < FILES; at++) await drive.put(name(at), chunk.subarray(0, 4096))
  })
  told['4 KiB files get'] = await timed(FILES, async () => {
    for (let at = 0; at < FILES; at++) if (!await drive.get(name(at))) throw new Error('no such file')
  })
  await drive.close()
}

async function main () {
  const told = {}
  await bees(told)
  await level(told)
  await drives(told)
  console.log(JSON.stringify(told))
}

main().catch((error) => {
  console.log(JSON.stringify({ error: error.message }))
  process.exit(1)
})
