// Makes captured.json: every protomux frame, decrypted, that two JavaScript peers send each other. The frames differ from run to
// run (the capability proves a fresh handshake, and timing changes the order), so this is data to be read, not to be matched.
const fs = require('fs')
const os = require('os')
const path = require('path')
const b4a = require('b4a')
const crypto = require('hypercore-crypto')
const Hypercore = require('hypercore')

const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'capture-'))
const block = (i, size = (i * 37) % 101) => b4a.from(Array.from({ length: size }, (_, j) => (i * 7 + j) & 255))

function tap (stream, from, frames) {
  const write = stream.write
  stream.write = function (data) {
    frames.push({ from, frame: b4a.toString(data, 'hex') })
    return write.call(this, data)
  }
}

async function main () {
  const frames = []
  const writer = new Hypercore(path.join(dir, 'writer'), { keyPair: crypto.keyPair(b4a.alloc(32, 1)) })
  await writer.append(Array.from({ length: 53 }, (_, i) => block(i)))
  const reader = new Hypercore(path.join(dir, 'reader'), writer.key)
  await reader.ready()
  const extension = reader.registerExtension('greeting', { encoding: 'utf-8' })
  writer.registerExtension('greeting', { encoding: 'utf-8' })
  const a = writer.replicate(true)
  const b = reader.replicate(false)
  tap(a.noiseStream, 'initiator', frames)
  tap(b.noiseStream, 'responder', frames)
  a.pipe(b).pipe(a)
  await reader.update({ wait: true })
  await reader.get(7)
  await Promise.all([reader.get(8), reader.get(40), reader.seek(900)])
  extension.send('hello', reader.peers[0])
  await writer.append([b4a.from('live'), b4a.from('update')])
  await reader.get(54)
  await reader.download({ start: 10, end: 30 }).done()
  await writer.truncate(20)
  await writer.append(b4a.from('another history'))
  await new Promise((resolve) => setTimeout(resolve, 300))
  await reader.get(20)
  const answer = {
    key: b4a.toString(writer.key, 'hex'),
    discovery_key: b4a.toString(writer.discoveryKey, 'hex'),
    handshake_hash: b4a.toString(a.noiseStream.handshakeHash, 'hex'),
    frames
  }
  fs.writeFileSync(path.join(__dirname, 'captured.json'), JSON.stringify(answer, null, 1) + '\n')
  a.destroy()
  b.destroy()
  await reader.close()
  await writer.close()
  fs.rmSync(dir, { recursive: true })
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
