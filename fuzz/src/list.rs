//! The targets by name. Compiled into `xtask`, too, so that it knows them without building them.

pub struct Target {
    pub name: &'static str,
    pub what: &'static str,
    /// Where inputs that were worth keeping lie, besides `fuzz/corpus/NAME`.
    pub seeds: &'static [&'static str],
    /// Longer inputs only cost time.
    pub bytes_max: usize,
}

/// The environment variable that names the target to run.
pub const CHOICE: &str = "CLOUDPAL_FUZZ";

const fn target(
    name: &'static str,
    bytes_max: usize,
    seeds: &'static [&'static str],
    what: &'static str,
) -> Target {
    Target { name, what, seeds, bytes_max }
}

/// No parser: it breaks at bytes that nobody guesses, and that whoever follows branches finds at once.
pub const TRAP: Target = target("trap", 64, &[], "shows that libFuzzer sees what it does");

pub const TARGETS: &[Target] = &[
    target("net", 2048, &[], "a hostile guest at virtio-net"),
    target("blk", 2048, &[], "a hostile guest at virtio-blk"),
    target("console", 2048, &[], "a hostile guest at virtio-console"),
    target("rng", 2048, &[], "a hostile guest at virtio-rng"),
    target("balloon", 2048, &[], "a hostile guest at virtio-balloon"),
    target("vsock", 2048, &[], "a hostile guest and hostile clients at virtio-vsock"),
    target("kernel", 8192, &[], "kernels: ELF and bzImage"),
    target("vmm-state", 32768, &["bin/cloudpal-vmm/tests/data"], "the state file of a sleeping machine"),
    target("vmm-diff", 20480, &[], "the diff of a sleeping machine's memory"),
    target("lines", 4096, &[], "lines of the control channels of guest and VMM"),
    target("message", 4096, &["core/data/corpus/message"], "messages of Hypercore's protocol"),
    target("frame", 4096, &["core/data/corpus/frame"], "frames of Protomux"),
    target("proof", 4096, &["core/data/corpus/proof"], "proofs, manifests and signatures"),
    target("stream", 4096, &["core/data/corpus/stream"], "the Noise handshake of a secret stream"),
    target("replication", 4096, &[], "a peer that says what it likes behind the handshake"),
    target("bee", 2048, &["core/data/corpus/bee"], "blocks of a bee"),
    target("trie", 2048, &["core/data/corpus/trie"], "blocks of a trie"),
    target("entry", 2048, &["core/data/corpus/entry"], "entries of a drive"),
    target("store", 16384, &["core/data/corpus/store"], "files of a store, from somebody without its key"),
    target("unpack", 4096, &[], "the rows of an import"),
    target(
        "layer",
        16384,
        &["core/compute/corpus"],
        "image layers: tar, gzip, zstd; merged and written as EROFS",
    ),
    target("image", 8192, &["core/compute/corpus"], "manifests, configurations and archives of images"),
    target("dns", 1024, &["core/net/corpus/dns"], "DNS questions"),
    target("text", 256, &[], "names, keys, domains, endpoints and references"),
];
