// What hyperdrive writes for given operations. `node drive.js make` writes drive.json. `node drive.js` takes from the standard input, a line
// each, the blocks of both cores of a drive (hex); it tells what it reads there, writes more, and answers with all blocks.
const fs = require('fs')
const os = require('os')
const path = require('path')
const b4a = require('b4a')
const crypto = require('hypercore-crypto')
const Corestore = require('corestore')
const Hyperdrive = require('hyperdrive')
const c = require('compact-encoding')
const m = require('hypercore/lib/messages')

const hex = (b) => b === null ? null : b4a.toString(b, 'hex')
const hash = (b) => hex(crypto.hash(b).subarray(0, 8))

// The same contents as in tests/drive.rs.
function contents (size, seed) {
  const bytes = b4a.alloc(size)
  for (let i = 0; i < size; i++) bytes[i] = (i * 31 + seed * 7 + (i >> 8)) & 255
  return bytes
}

async function open (opts) {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'drive-'))
  const store = new Corestore(dir, { primaryKey: b4a.alloc(32, 1), unsafe: true })
  const drive = new Hyperdrive(store, opts)
  await drive.ready()
  return { drive, dir }
}

async function close ({ drive, dir }) {
  await drive.close()
  fs.rmSync(dir, { recursive: true })
}

async function blocksOf (core) {
  const blocks = []
  for (let i = 0; i < core.length; i++) blocks.push(await core.get(i))
  return blocks
}

async function listing (drive, folder = '/') {
  const all = []
  for await (const { seq, key, value } of drive.list(folder)) {
    const got = await drive.get(key)
    all.push([seq, key, value, got && hash(got)])
  }
  return all
}

async function names (drive, folder) {
  const all = []
  for await (const name of drive.readdir(folder)) all.push(name)
  return all
}

async function changes (drive, since, folder) {
  const all = []
  for await (const { left, right } of drive.diff(since, folder)) all.push([left && left.seq, right && right.seq, (left || right).key])
  return all
}

async function first (drive) {
  await drive.put('/hello.txt', 'hello')
  await drive.put('empty', b4a.alloc(0))
  await drive.put('/dir/one block', contents(65536, 1), { executable: true })
  await drive.put('/dir/sub/more.bin', contents(200000, 2), { metadata: { b: 1, a: ['x', null, 'é\n'] } })
  await drive.symlink('/dir/link', '/hello.txt')
  await drive.symlink('/dir/beside', '../sub/more.bin')
  await drive.symlink('/loop', '/loop')
}

async function second (drive) {
  await drive.put('/hello.txt', 'hello again')
  await drive.del('empty')
  await drive.del('/never')
  const batch = drive.batch()
  await batch.put('/z/1', contents(10, 3))
  await batch.put('/z/2', contents(66000, 4))
  await batch.symlink('/z/3', '/z/1')
  await batch.del('/dir/one block')
  await batch.flush()
  const ws = drive.createWriteStream('/streamed', { executable: true })
  for (const size of [1000, 50000, 3]) ws.write(contents(size, size))
  ws.end()
  await new Promise((resolve, reject) => { ws.on('close', resolve); ws.on('error', reject) })
}

async function told (drive) {
  const part = drive.createReadStream('/dir/sub/more.bin', { start: 65000, length: 70000 })
  const parts = []
  for await (const data of part) parts.push(data)
  return {
    version: drive.version,
    listing: await listing(drive),
    below: (await listing(drive, '/dir')).map(([seq, key]) => [seq, key]),
    root: await names(drive, '/'),
    dir: await names(drive, '/dir'),
    follow: [(await drive.entry('/dir/link', { follow: true })).key, (await drive.entry('/dir/beside', { follow: true })).key],
    loop: await drive.entry('/loop', { follow: true }).catch((error) => error.message),
    part: hash(b4a.concat(parts))
  }
}

async function make () {
  const at = await open({})
  const { drive } = at
  await first(drive)
  const before = await told(drive)
  const middle = drive.version
  await second(drive)
  const blobs = await drive.getBlobs()
  const golden = {
    key: hex(drive.key),
    manifest: hex(c.encode(m.manifest, drive.core.manifest)),
    blobs_key: hex(blobs.core.key),
    db: (await blocksOf(drive.core)).map(hex),
    blobs: (await blocksOf(blobs.core)).map(hash),
    streamed: (await drive.entry('/streamed')).value.blob,
    middle,
    before,
    after: await told(drive),
    diff: await changes(drive, middle, '/'),
    diff_dir: await changes(drive, middle, '/z')
  }
  await close(at)

  const dedup = await open({})
  const twice = contents(3 * 65536, 9)
  for (const name of ['/one', '/one', '/two']) {
    const ws = dedup.drive.createWriteStream(name, { dedup: true })
    for (let i = 0; i < twice.length; i += 65536) ws.write(twice.subarray(i % 131072, (i % 131072) + 65536))
    ws.end()
    await new Promise((resolve, reject) => { ws.on('close', resolve); ws.on('error', reject) })
  }
  golden.dedup = {
    db: (await blocksOf(dedup.drive.core)).map(hex),
    maps: (await blocksOf(dedup.drive.blobs.core)).map((b) => b.length < 1000 ? hex(b) : [hash(b), b.length]),
    contents: hash(await dedup.drive.get('/one'))
  }
  await close(dedup)
  fs.writeFileSync(path.join(__dirname, 'drive.json'), JSON.stringify(golden, null, 1) + '\n')
}

async function serve () {
  for await (const line of require('readline').createInterface({ input: process.stdin })) {
    const given = JSON.parse(line)
    const at = await open({})
    const { drive } = at
    const blobs = await drive.getBlobs()
    await drive.core.append(given.db.map((b) => b4a.from(b, 'hex')))
    await blobs.core.append(given.blobs.map((b) => b4a.from(b, 'hex')))
    const read = await told(drive)
    await second(drive)
    const result = {
      read,
      db: (await blocksOf(drive.core)).map(hex),
      blobs: (await blocksOf(blobs.core)).map(hex),
      after: await told(drive)
    }
    await close(at)
    console.log(JSON.stringify(result))
  }
}

(process.argv[2] === 'make' ? make() : serve()).catch((error) => {
  console.error(error)
  process.exit(1)
})
