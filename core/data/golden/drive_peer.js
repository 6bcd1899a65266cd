// A JavaScript device of the owner's: `node drive_peer.js HOST PORT KEY [ENCRYPTION_KEY]` replicates a drive over TCP. It writes a
// drive of its own beside it, and takes commands, a line each: `get PATH`, `put PATH TEXT`, `wait VERSION`, `own`. Each answer is a
// line of JSON; a file's content is told by its hash (BLAKE2b-256) and size.
const fs = require('fs')
const net = require('net')
const os = require('os')
const path = require('path')
const readline = require('readline')
const b4a = require('b4a')
const crypto = require('hypercore-crypto')
const Corestore = require('corestore')
const Hyperdrive = require('hyperdrive')
const SecretStream = require('@hyperswarm/secret-stream')

const [host, port, key, encryptionKey] = process.argv.slice(2)
const tell = (message) => process.stdout.write(JSON.stringify(message) + '\n')
const described = (bytes) => bytes && { bytes: bytes.byteLength, hash: b4a.toString(crypto.hash(bytes), 'hex') }

async function main () {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'drive-peer-'))
  process.on('exit', () => fs.rmSync(dir, { recursive: true }))
  const store = new Corestore(dir)
  const options = encryptionKey ? { encryptionKey: b4a.from(encryptionKey, 'hex') } : {}
  const drive = new Hyperdrive(store, b4a.from(key, 'hex'), options)
  const own = new Hyperdrive(store.namespace('own'))
  await drive.ready()
  await own.ready()

  const socket = net.connect(Number(port), host)
  socket.setNoDelay(true)
  const stream = new SecretStream(true, socket)
  stream.on('error', (error) => tell({ error: error.message }))
  store.replicate(stream)
  await drive.getBlobs()
  await own.getBlobs()
  tell({ ready: true })

  const commands = {
    async wait (version) {
      while (drive.version < Number(version)) await drive.update({ wait: true })
      return { version: drive.version }
    },
    async get (name) {
      return described(await drive.get(name, { wait: true, timeout: 60000 }))
    },
    async put (name, ...text) {
      await own.put(name, b4a.from(text.join(' ')))
      return { version: own.version }
    },
    async own () {
      return { key: b4a.toString(own.key, 'hex') }
    }
  }
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [name, ...words] = line.split(' ')
    try {
      tell(await commands[name](...words))
    } catch (error) {
      tell({ error: error.message })
    }
  }
  process.exit(0)
}

main()
