// Makes golden.json: what the JavaScript Hypercore stack answers, for the tests of this crate to match byte for byte.
// Everything comes from fixed seeds, so a second run writes the same file.
const fs = require('fs')
const os = require('os')
const path = require('path')
const b4a = require('b4a')
const c = require('compact-encoding')
const crypto = require('hypercore-crypto')
const flat = require('flat-tree')
const Hypercore = require('hypercore')
const Corestore = require('corestore')
const caps = require('hypercore/lib/caps')
const m = require('hypercore/lib/messages')
const multisig = require('hypercore/lib/multisig')
const Verifier = require('hypercore/lib/verifier')
const DefaultEncryption = require('hypercore/lib/default-encryption')
const { MerkleTree } = require('hypercore/lib/merkle-tree')

const hex = (buffer) => buffer && b4a.toString(buffer, 'hex')
const seed = (n) => b4a.alloc(32, n)
const pairs = [1, 2, 3].map((n) => crypto.keyPair(seed(n)))
const block = (i, size = (i * 37) % 101) => b4a.from(Array.from({ length: size }, (_, j) => (i * 7 + j) & 255))
const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'golden-'))
let cores = 0
const place = () => path.join(dir, String(cores++))

function signers (n, namespace = caps.DEFAULT_NAMESPACE) {
  return pairs.slice(0, n).map((pair) => ({ signature: 'ed25519', namespace, publicKey: pair.publicKey }))
}

const prologue = { hash: b4a.alloc(32, 9), length: 70000 }
const manifests = {
  'v0 single': { version: 0, signers: signers(1) },
  'v0 multi': { version: 0, signers: signers(3), quorum: 2 },
  'v0 patch': { version: 0, signers: signers(2), quorum: 1, allowPatch: true },
  'v0 prologue': { version: 0, signers: [], prologue: { hash: prologue.hash, length: 0 } },
  'v1 default': Verifier.defaultSignerManifest(pairs[0].publicKey),
  'v1 own namespace': { version: 1, signers: signers(1, b4a.alloc(32, 5)) },
  'v1 multi': { version: 1, signers: signers(3), quorum: 2 },
  'v1 patch': { version: 1, signers: signers(3), quorum: 2, allowPatch: true },
  'v1 prologue': { version: 1, signers: signers(1), prologue },
  'v1 only prologue': { version: 1, signers: [], quorum: 0, prologue },
  'v2 linked': { version: 2, signers: signers(2), linked: [b4a.alloc(32, 6), b4a.alloc(32, 7)] },
  'v2 user data': { version: 2, signers: signers(1), userData: b4a.from('hello') },
  'v3 all': { version: 3, signers: signers(3), quorum: 3, allowPatch: true, prologue, linked: [b4a.alloc(32, 8)], userData: block(7) },
  'v3 default': { version: 3, signers: signers(1) }
}

function describe (name, manifest) {
  return {
    name,
    version: manifest.version,
    quorum: manifest.quorum,
    allow_patch: manifest.allowPatch,
    signers: manifest.signers.map((s) => ({ namespace: hex(s.namespace), public_key: hex(s.publicKey) })),
    prologue: manifest.prologue && { hash: hex(manifest.prologue.hash), length: manifest.prologue.length },
    linked: manifest.linked && manifest.linked.map(hex),
    user_data: manifest.userData && hex(manifest.userData),
    encoded: hex(Verifier.encodeManifest(manifest)),
    key: hex(Verifier.manifestHash(manifest))
  }
}

const nodes = (list) => list && list.map((n) => ({ index: n.index, size: n.size, hash: hex(n.hash) }))

function describeProof (request, proof) {
  return {
    request: JSON.parse(JSON.stringify(request)),
    fork: proof.fork,
    block: proof.block && { index: proof.block.index, value: hex(proof.block.value), nodes: nodes(proof.block.nodes) },
    hash: proof.hash && { index: proof.hash.index, nodes: nodes(proof.hash.nodes) },
    seek: proof.seek && { bytes: proof.seek.bytes, nodes: nodes(proof.seek.nodes) },
    upgrade: proof.upgrade && {
      start: proof.upgrade.start,
      length: proof.upgrade.length,
      nodes: nodes(proof.upgrade.nodes),
      additional: nodes(proof.upgrade.additionalNodes),
      signature: hex(proof.upgrade.signature)
    },
    wire: hex(c.encode(m.wire.data, { request: 7, ...proof, manifest: null }))
  }
}

async function prove (core, request) {
  const state = core.core.state
  const rx = state.storage.read()
  // The upgrade of a request may be widened in place, hence the copy.
  const pending = await MerkleTree.proof(state, rx, structuredClone(request))
  rx.tryFlush()
  const proof = await pending.settle()
  if (proof.block) proof.block.value = await core.get(proof.block.index)
  return describeProof(request, proof)
}

async function tree (name, options, sizes) {
  const core = new Hypercore(place(), { keyPair: pairs[0], ...options })
  await core.ready()
  const steps = []
  for (const length of sizes) {
    const batch = []
    for (let i = core.length; i < length; i++) batch.push(block(i))
    if (batch.length) await core.append(batch)
    const state = core.core.state
    steps.push({
      length: core.length,
      byte_length: core.byteLength,
      fork: core.fork,
      roots: nodes(state.roots),
      tree_hash: hex(await core.treeHash()),
      signature: hex(state.signature)
    })
  }
  const answer = { name, key: hex(core.key), discovery_key: hex(core.discoveryKey), steps }
  await core.close()
  return answer
}

async function forked () {
  const core = new Hypercore(place(), { keyPair: pairs[0] })
  await core.ready()
  const steps = []
  const note = async (does) => {
    const state = core.core.state
    steps.push({ does, length: core.length, fork: core.fork, byte_length: core.byteLength,
      tree_hash: hex(await core.treeHash()), signature: hex(state.signature) })
  }
  await core.append(Array.from({ length: 21 }, (_, i) => block(i)))
  await note('append 21')
  await core.truncate(13)
  await note('truncate 13')
  await core.append([b4a.from('other'), b4a.from('history')])
  await note('append other, history')
  await core.truncate(4, 9)
  await note('truncate 4 to fork 9')
  await core.append(b4a.from('third'))
  await note('append third')
  await core.close()
  return steps
}

async function proofs () {
  const answers = []
  const core = new Hypercore(place(), { keyPair: pairs[0] })
  await core.append(Array.from({ length: 53 }, (_, i) => block(i)))
  const total = core.byteLength
  const requests = []
  for (const index of [0, 1, 13, 31, 32, 47, 48, 51, 52]) {
    requests.push({ block: { index, nodes: 0 } })
    requests.push({ block: { index, nodes: MerkleTree.maxMissingNodes(2 * index, 53) } })
    requests.push({ block: { index, nodes: 0 }, upgrade: { start: 0, length: 53 } })
  }
  for (const index of [1, 3, 7, 31, 64, 71, 99]) {
    requests.push({ hash: { index, nodes: 0 } })
    requests.push({ hash: { index, nodes: MerkleTree.maxMissingNodes(index, 53) } })
    requests.push({ hash: { index, nodes: 0 }, upgrade: { start: 0, length: 53 } })
  }
  for (const start of [0, 1, 2, 5, 8, 20, 31, 32, 33, 52]) {
    requests.push({ upgrade: { start, length: 53 - start } })
    if (start < 40) requests.push({ upgrade: { start, length: 41 - start } })
    if (start < 40) requests.push({ block: { index: 40, nodes: 0 }, upgrade: { start, length: 41 - start } })
    if (start > 2) requests.push({ block: { index: 2, nodes: MerkleTree.maxMissingNodes(4, start) }, upgrade: { start, length: 53 - start } })
  }
  for (const bytes of [0, 1, 37, 500, 1000, 1600, total - 1]) {
    requests.push({ seek: { bytes, padding: 0 }, upgrade: { start: 0, length: 53 } })
    requests.push({ seek: { bytes, padding: 0 }, upgrade: { start: 20, length: 33 } })
  }
  for (const bytes of [1, 37, 300, 700]) {
    requests.push({ block: { index: 3, nodes: MerkleTree.maxMissingNodes(6, 53) }, seek: { bytes, padding: 0 } })
    requests.push({ hash: { index: 6, nodes: MerkleTree.maxMissingNodes(6, 53) }, seek: { bytes, padding: 0 } })
  }
  for (const request of requests) {
    try {
      answers.push(await prove(core, request))
    } catch (error) {
      answers.push({ request, refused: error.code || error.message })
    }
  }
  const seeks = []
  for (let bytes = 0; bytes <= total; bytes += 97) seeks.push([bytes, ...(await core.seek(bytes))])
  const empty = { sizes: [0, 0, 3, 0, 2, 0, 0, 4], seeks: [] }
  const holes = new Hypercore(place(), { keyPair: pairs[0] })
  await holes.append(empty.sizes.map((size) => b4a.alloc(size)))
  for (let bytes = 0; bytes <= 9; bytes++) empty.seeks.push([bytes, ...(await holes.seek(bytes))])
  await holes.close()
  const answer = { empty, key: hex(core.key), length: core.length, byte_length: total, proofs: answers, seeks }
  await core.close()
  return answer
}

// Three signers, two of whom must agree; the third has seen less, so that its signature comes with a patch.
async function multi () {
  const answers = []
  for (const version of [0, 1]) {
    const manifest = Verifier.createManifest({ version, signers: signers(3), quorum: 2, allowPatch: version === 1 })
    const open = async (n, length) => {
      const core = new Hypercore(place(), { manifest, keyPair: pairs[n] })
      await core.ready()
      const signer = new Hypercore(place(), { keyPair: pairs[n], manifest: { signers: [signers(3)[n]] } })
      await signer.append(Array.from({ length }, (_, i) => block(i)))
      return { core, signer }
    }
    const key = Verifier.manifestHash(manifest)
    const verifier = new Verifier(key, manifest)
    const sign = (batch, n) => verifier.signers[n].sign(batch, pairs[n])
    const full = await open(0, 12)
    const batch = full.signer.core.state.createTreeBatch()
    const whole = [0, 2].map((signer) => ({ signer, signature: sign(batch, signer), patch: 0, nodes: null }))
    const signature = verifier.assemble(whole)
    if (!verifier.verify(batch, signature)) throw new Error('not accepted')
    answers.push({ version, key: hex(key), encoded: hex(Verifier.encodeManifest(manifest)), length: 12, fork: 0, signature: hex(signature), patched: false })
    if (version === 1) {
      const short = await open(1, 9)
      const partial = await multisig.partialSignature(full.signer.core, 1, 9, 12, sign(short.signer.core.state.createTreeBatch(), 1))
      const shortBatch = short.signer.core.state.createTreeBatch()
      const patched = verifier.assemble([{ signer: 1, signature: sign(shortBatch, 1), patch: 0, nodes: null }, { signer: 0, signature: sign(batch, 0), patch: 3, nodes: partial.nodes }])
      // The tree at length 9: signer 0 has signed the three blocks after it.
      if (!verifier.verify(shortBatch, patched)) throw new Error('patch not accepted')
      answers.push({ version, key: hex(key), encoded: hex(Verifier.encodeManifest(manifest)), length: 9, fork: 0, signature: hex(patched), patched: true })
      await short.core.close()
      await short.signer.close()
    }
    await full.core.close()
    await full.signer.close()
  }
  return answers
}

async function encryption () {
  const encryptionKey = seed(11)
  const answers = []
  for (const compat of [false, true]) {
    const core = new Hypercore(place(), { keyPair: pairs[0], compat, encryption: { key: encryptionKey } })
    await core.append([b4a.from('first'), b4a.from('second'), block(77)])
    const raw = []
    for (let i = 0; i < 3; i++) raw.push(hex(await core.get(i, { raw: true })))
    await core.truncate(2)
    await core.append(b4a.from('on fork 1'))
    raw.push(hex(await core.get(2, { raw: true })))
    const keys = DefaultEncryption.deriveKeys(encryptionKey, core.key, { compat })
    answers.push({ compat, key: hex(core.key), block_key: hex(keys.block), blinding_key: hex(keys.blinding), raw })
    await core.close()
  }
  return { encryption_key: hex(encryptionKey), cores: answers }
}

async function named () {
  const primaryKey = seed(21)
  const store = new Corestore(place(), { primaryKey, unsafe: true })
  await store.ready()
  const answers = []
  for (const [path, name] of [[[], 'a'], [[], 'photos'], [['app'], 'a'], [['app', 'deep'], 'a']]) {
    let at = store
    for (const part of path) at = at.namespace(part)
    const core = at.get({ name })
    await core.ready()
    const pair = await at.createKeyPair(name)
    answers.push({ path, name, namespace: hex(at.ns), public_key: hex(pair.publicKey), key: hex(core.key), discovery_key: hex(core.discoveryKey) })
    await core.close()
  }
  await store.close()
  return { primary_key: hex(primaryKey), cores: answers }
}

function uints () {
  const numbers = [0, 1, 0xfc, 0xfd, 0xfe, 0xff, 0x100, 0xffff, 0x10000, 0xffffffff, 0x100000000, Number.MAX_SAFE_INTEGER]
  return numbers.map((n) => [n, hex(c.encode(c.uint, n))])
}

// Rows of the Rust test, by name and in its order.
function wire () {
  const key = b4a.alloc(32, 4)
  const none = { block: null, hash: null, seek: null, upgrade: null, manifest: false, priority: 0 }
  const rows = [
    ['sync', { fork: 3, length: 300, remoteLength: 70000, canUpgrade: true, uploading: false, downloading: true, hasManifest: true, allowPush: false }],
    ['sync', { fork: 0, length: 0, remoteLength: 0, canUpgrade: false, uploading: true, downloading: false, hasManifest: false, allowPush: true }],
    ['request', { ...none, id: 1, fork: 0, block: { index: 5, nodes: 2 } }],
    ['request', { ...none, id: 900, fork: 2, hash: { index: 7, nodes: 0 }, seek: { bytes: 1000, padding: 8 } }],
    ['request', { ...none, id: 2, fork: 1, upgrade: { start: 4, length: 60 }, manifest: true, priority: 3 }],
    ['cancel', { request: 300 }],
    ['noData', { request: 4, reason: 0 }],
    ['noData', { request: 4, reason: 2 }],
    ['want', { start: 0, length: 32768, any: false }],
    ['want', { start: 2 ** 40, length: 1, any: true }],
    ['unwant', { start: 32768, length: 32768, any: false }],
    ['bitfield', { start: 32768, bitfield: new Uint32Array([1, 0xffffffff, 0x80000000]) }],
    ['range', { drop: false, start: 9, length: 1 }],
    ['range', { drop: true, start: 0, length: 1000 }],
    ['extension', { name: 'greeting', message: b4a.from('hello') }]
  ]
  return {
    messages: rows.map(([kind, message]) => ({ kind, bytes: hex(c.encode(m.wire[kind], message)) })),
    handshake: hex(c.encode(m.wire.handshake, { seeks: true, capability: key })),
    capabilities: [true, false].map((initiator) => hex(caps.replicate(initiator, key, b4a.alloc(64, 3))))
  }
}

async function main () {
  const golden = {
    made_with: Object.fromEntries(Object.entries(require('./package.json').dependencies)),
    uints: uints(),
    namespaces: crypto.namespace('hypercore', 6).map(hex),
    key_pairs: pairs.map((pair, i) => ({ seed: hex(seed(i + 1)), public_key: hex(pair.publicKey) })),
    leaves: [0, 1, 31, 32, 129, 1000].map((size) => ({ size, hash: hex(crypto.data(block(5, size))) })),
    manifests: Object.entries(manifests).map(([name, input]) => {
      const manifest = Verifier.createManifest(input)
      return describe(name, manifest)
    }),
    full_roots: [0, 1, 2, 3, 7, 8, 100, 65535, 2 ** 40 + 5].map((n) => [n, flat.fullRoots(2 * n)]),
    trees: [
      await tree('default', {}, [0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 32, 33, 100, 127, 128, 1000]),
      await tree('compat', { compat: true }, [0, 1, 2, 3, 8, 33]),
      await tree('v0', { manifest: { version: 0, signers: signers(1) } }, [1, 2, 3, 8, 33]),
      await tree('v2 user data', { manifest: manifests['v2 user data'] }, [1, 2, 7])
    ],
    forked: await forked(),
    proofs: await proofs(),
    multi: await multi(),
    encryption: await encryption(),
    named: await named(),
    wire: wire()
  }
  fs.writeFileSync(path.join(__dirname, 'golden.json'), JSON.stringify(golden, null, 1) + '\n')
  fs.rmSync(dir, { recursive: true })
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
