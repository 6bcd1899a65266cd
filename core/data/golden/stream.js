// A secret-stream peer that echoes every message. `node stream.js listen` prints its port; `node stream.js dial PORT` connects
// and first sends messages of 1, 100, 65536 and 1000000 bytes. Each prints what it knows of the other as JSON.
const net = require('net')
const b4a = require('b4a')
const SecretStream = require('@hyperswarm/secret-stream')

function run (initiator, socket) {
  const stream = new SecretStream(initiator, socket, { keyPair: SecretStream.keyPair(b4a.alloc(32, 7)) })
  stream.on('error', (error) => console.log(JSON.stringify({ error: error.message })))
  stream.on('close', () => process.exit(0))
  stream.on('connect', () => {
    console.log(JSON.stringify({
      remote: b4a.toString(stream.remotePublicKey, 'hex'),
      handshake_hash: b4a.toString(stream.handshakeHash, 'hex')
    }))
    if (initiator) for (const size of [1, 100, 65536, 1000000]) stream.write(b4a.alloc(size, size & 255))
  })
  stream.on('data', (data) => stream.write(data))
  stream.on('end', () => stream.end())
}

const [mode, port] = process.argv.slice(2)
if (mode === 'listen') {
  const server = net.createServer((socket) => run(false, socket))
  server.listen(0, '127.0.0.1', () => console.log(JSON.stringify({ port: server.address().port })))
} else {
  const socket = net.connect(Number(port), '127.0.0.1')
  run(true, socket)
}
