// Feeds a core that this crate has written, as the messages `data` on the standard input (JSON: key and messages in hex), to a
// fresh JavaScript core, which checks every one. Prints what the JavaScript core then holds.
const fs = require('fs')
const os = require('os')
const path = require('path')
const b4a = require('b4a')
const c = require('compact-encoding')
const Hypercore = require('hypercore')
const m = require('hypercore/lib/messages')

async function main () {
  const given = JSON.parse(fs.readFileSync(0, 'utf8'))
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'accept-'))
  const core = new Hypercore(dir, b4a.from(given.key, 'hex'))
  await core.ready()
  let refused = 0
  for (const message of given.messages) {
    const proof = c.decode(m.wire.data, b4a.from(message, 'hex'))
    try {
      if (!(await core.core.verify(proof))) refused++
    } catch (error) {
      refused++
    }
  }
  const blocks = []
  for (let i = 0; i < core.length; i++) {
    const block = (await core.has(i)) ? await core.get(i, { wait: false }) : null
    blocks.push(block && b4a.toString(block, 'hex'))
  }
  console.log(JSON.stringify({ length: core.length, byte_length: core.byteLength, refused, blocks }))
  await core.close()
  fs.rmSync(dir, { recursive: true })
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
