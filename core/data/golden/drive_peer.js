// A JavaScript device of the owner's: `node drive_peer.js HOST PORT KEY [ENCRYPTION_KEY]` replicates a drive over TCP,
// and beside it a drive of its own. It takes commands, a line each, and answers each with a line of JSON:
//   wait VERSION      until the drive has this version
//   get PATH FILE     a file of the drive, written to FILE
//   put FILE PATH     FILE, put into the peer's own drive
//   own               the key of the peer's own drive
//   all               every block of the drive, fetched
// With STORE_DIR in the environment, what it stores stays there for the next one; else it goes with its end. What takes
// longer than 60 s is given up, and said. It ends with its standard input.
const fs = require('fs')
const net = require('net')
const os = require('os')
const path = require('path')
const readline = require('readline')
const b4a = require('b4a')
const Corestore = require('corestore')
const Hyperdrive = require('hyperdrive')
const SecretStream = require('@hyperswarm/secret-stream')

const [host, port, key, encryptionKey] = process.argv.slice(2)
const PATIENCE_MS = 60000
const tell = (message) => process.stdout.write(JSON.stringify(message) + '\n')

function bounded (what, work) {
  let timer
  const late = new Promise((resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: nothing for ${PATIENCE_MS / 1000} s`)), PATIENCE_MS)
  })
  return Promise.race([work, late]).finally(() => clearTimeout(timer))
}

// Until somebody listens: a network that was just made is not there at once.
async function connected () {
  for (const started = Date.now(); ; await new Promise((resolve) => setTimeout(resolve, 100))) {
    try {
      return await new Promise((resolve, reject) => {
        const socket = net.connect(Number(port), host, () => resolve(socket))
        socket.on('error', reject)
      })
    } catch (error) {
      if (Date.now() - started > PATIENCE_MS) throw error
    }
  }
}

async function main () {
  const kept = process.env.STORE_DIR
  const dir = kept || fs.mkdtempSync(path.join(os.tmpdir(), 'drive-peer-'))
  if (!kept) process.on('exit', () => fs.rmSync(dir, { recursive: true, force: true }))
  const store = new Corestore(dir)
  const options = encryptionKey ? { encryptionKey: b4a.from(encryptionKey, 'hex') } : {}
  const drive = new Hyperdrive(store, b4a.from(key, 'hex'), options)
  const own = new Hyperdrive(store.namespace('own'))
  await drive.ready()
  await own.ready()

  const socket = await connected()
  socket.setNoDelay(true)
  const stream = new SecretStream(true, socket)
  stream.on('error', (error) => process.stderr.write(`drive_peer: the connection: ${error.message}\n`))
  store.replicate(stream)
  await bounded('the drive\'s header', drive.getBlobs())
  await bounded('the own drive', own.getBlobs())
  tell({ ready: true })

  const commands = {
    async wait (version) {
      while (drive.version < Number(version)) {
        await drive.update({ wait: true })
        // It may answer at once that nothing is new: without a pause nothing else, the socket least of all, gets its turn.
        await new Promise((resolve) => setTimeout(resolve, 20))
      }
      return { version: drive.version }
    },
    async get (name, file) {
      const bytes = await drive.get(name, { wait: true })
      if (bytes === null) throw new Error(`the drive has no ${name}`)
      fs.writeFileSync(file, bytes)
      return { bytes: bytes.byteLength }
    },
    async put (file, name) {
      await own.put(name, fs.readFileSync(file))
      return { version: own.version }
    },
    async own () {
      return { key: b4a.toString(own.key, 'hex') }
    },
    async all () {
      const { core: blobs } = await drive.getBlobs()
      for (const core of [drive.core, blobs]) await core.download({ start: 0, end: core.length }).done()
      return { blocks: drive.core.length + blobs.length }
    }
  }
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [name, ...words] = line.split(' ')
    try {
      tell(await bounded(line, commands[name](...words)))
    } catch (error) {
      tell({ error: error.message })
    }
  }
  process.exit(0)
}

main().catch((error) => {
  tell({ error: error.message })
  process.exit(1)
})
