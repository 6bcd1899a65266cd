// A JavaScript peer that does what it is told, in lines of JSON: `node peer.js 11` or `node peer.js 10`, the major version of
// Hypercore. Each command has `do` and, but for connections, `core`, a name; each is answered by one line. Blocks are those of
// golden_kit: byte j of block i is (7 i + j) & 255.
const fs = require('fs')
const net = require('net')
const os = require('os')
const path = require('path')
const readline = require('readline')
const b4a = require('b4a')
const SecretStream = require('@hyperswarm/secret-stream')
const hypercoreCrypto = require('hypercore-crypto')

const Hypercore = require(process.argv[2] === '10' ? 'hypercore-10' : 'hypercore')
const root = fs.mkdtempSync(path.join(os.tmpdir(), 'peer-'))
const cores = new Map()
const streams = new Set()

const tell = (message) => process.stdout.write(JSON.stringify(message) + '\n')
const hex = (bytes) => bytes && b4a.toString(bytes, 'hex')
const bytes = (text) => text && b4a.from(text, 'hex')

function block (i, size) {
  const bytes = b4a.alloc(size)
  for (let j = 0; j < size; j++) bytes[j] = (i * 7 + j) & 255
  return bytes
}

function connect (initiator, socket) {
  socket.setNoDelay(true)
  const stream = new SecretStream(initiator, socket)
  streams.add(stream)
  stream.on('error', () => {})
  stream.on('close', () => streams.delete(stream))
  for (const { core } of cores.values()) core.replicate(stream, { session: true })
}

function lie (core) {
  const spoil = (peer) => {
    const send = peer.wireData.send
    peer.wireData.send = (message) => {
      if (message.block) {
        const value = b4a.from(message.block.value)
        value[value.byteLength - 1] ^= 1
        message = { ...message, block: { ...message.block, value } }
      }
      return send(message)
    }
  }
  core.peers.forEach(spoil)
  core.on('peer-add', spoil)
}

const commands = {
  async open ({ core: name, key, seed, compat, encryption, manifest }) {
    const options = {}
    if (seed !== undefined) options.keyPair = hypercoreCrypto.keyPair(b4a.alloc(32, seed))
    if (compat !== undefined) options.compat = compat
    if (encryption) {
      if (process.argv[2] === '10') options.encryptionKey = bytes(encryption)
      else options.encryption = { key: bytes(encryption) }
    }
    const core = new Hypercore(path.join(root, name), bytes(key), options)
    await core.ready()
    cores.set(name, { core })
    for (const stream of streams) core.replicate(stream, { session: true })
    return info(core)
  },
  async info ({ core }) {
    return info(core)
  },
  async append ({ core, start, count, size }) {
    for (let i = start; i < start + count; i += 1000) {
      const batch = []
      for (let j = i; j < Math.min(i + 1000, start + count); j++) batch.push(block(j, size))
      await core.append(batch)
    }
    return info(core)
  },
  async get ({ core, index }) {
    return { block: hex(await core.get(index, { timeout: 60000 })) }
  },
  async has ({ core, index }) {
    return { has: await core.has(index) }
  },
  async update ({ core }) {
    return { updated: await core.update({ wait: true }), ...info(core) }
  },
  async length ({ core, length }) {
    while (core.length < length) await new Promise((resolve) => core.once('append', resolve))
    return info(core)
  },
  async fork ({ core, fork, length }) {
    while (core.fork < fork || core.length < length) await new Promise((resolve) => setTimeout(resolve, 10))
    return info(core)
  },
  async download ({ core, start, end }) {
    const started = process.hrtime.bigint()
    await core.download({ start, end }).done()
    return { ms: Number(process.hrtime.bigint() - started) / 1e6 }
  },
  async digest ({ core, start, end }) {
    const blocks = []
    for (let i = start; i < end; i++) blocks.push(await core.get(i, { timeout: 60000 }))
    return { digest: hex(hypercoreCrypto.hash(b4a.concat(blocks))) }
  },
  async truncate ({ core, length }) {
    await core.truncate(length)
    return info(core)
  },
  async clear ({ core, start, end }) {
    await core.clear(start, end)
    return info(core)
  },
  async seek ({ core, bytes }) {
    const [index, offset] = await core.seek(bytes)
    return { index, offset }
  },
  async extension ({ core, name, send }) {
    const extension = core.registerExtension(name, { encoding: 'utf-8', onmessage: (message) => tell({ event: 'extension', message }) })
    if (send) for (const peer of core.peers) extension.send(send, peer)
    return {}
  },
  async lie ({ core }) {
    lie(core)
    return {}
  },
  async listen () {
    const server = net.createServer((socket) => connect(false, socket))
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
    return { port: server.address().port }
  },
  async dial ({ port }) {
    connect(true, net.connect(port, '127.0.0.1'))
    return {}
  },
  async hangup () {
    for (const stream of streams) stream.destroy()
    return {}
  }
}

function info (core) {
  return {
    key: hex(core.key),
    discovery_key: hex(core.discoveryKey),
    length: core.length,
    byte_length: core.byteLength,
    fork: core.fork,
    contiguous: core.contiguousLength,
    peers: core.peers.length
  }
}

readline.createInterface({ input: process.stdin }).on('line', async (line) => {
  const command = JSON.parse(line)
  try {
    const known = cores.get(command.core)
    const core = command.do === 'open' ? command.core : known && known.core
    tell(await commands[command.do]({ ...command, core }))
  } catch (error) {
    tell({ error: error.message })
  }
}).on('close', () => process.exit(0))

process.on('exit', () => fs.rmSync(root, { recursive: true, force: true, maxRetries: 10, retryDelay: 50 }))
