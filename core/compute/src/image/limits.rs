//! How large an image may be. Everything that comes from outside is measured against one of these.

/// Bounds of one image. The operator can change them; the defaults hold every sensible image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// All layers unpacked, as tar streams.
    pub unpacked_bytes: u64,
    /// One file.
    pub file_bytes: u64,
    /// Files, directories and links, of all layers together.
    pub entries: u64,
    /// Unpacked bytes per packed byte, above [`Limits::ratio_free_bytes`] (a zip bomb has a thousand).
    pub ratio: u64,
    /// So much may come out of a layer before its ratio counts.
    pub ratio_free_bytes: u64,
    /// One path, and one link's target.
    pub path_bytes: u64,
    /// Names, link targets and extended attributes of all layers together: they are held in memory.
    pub metadata_bytes: u64,
    /// Extended attributes of one file: a value, and all of them.
    pub xattr_bytes: u64,
    pub layers: u64,
    /// A manifest, an index, and an archive's table.
    pub manifest_bytes: u64,
    pub config_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            unpacked_bytes: 16 << 30,
            file_bytes: 8 << 30,
            entries: 2_000_000,
            ratio: 200,
            ratio_free_bytes: 64 << 20,
            path_bytes: 4096,
            metadata_bytes: 512 << 20,
            xattr_bytes: 64 << 10,
            layers: 256,
            manifest_bytes: 4 << 20,
            config_bytes: 4 << 20,
        }
    }
}
