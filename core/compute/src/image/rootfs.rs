//! From verified layers to one root file system.

use super::{
    decompress::Unpacked,
    digest::{Algorithm, Blob, Digest, Hasher, Measured},
    erofs,
    error::ImageError,
    layer::{LayerReader, LeftOut, Spool, stream_error},
    limits::Limits,
    tree::Tree,
};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};

const SPOOL_BUFFER_BYTES: usize = 1 << 20;

/// Takes layers, lowest first, then writes the root file system. After an error it is of no more use.
pub struct RootfsBuilder<S: Read + Write + Seek> {
    limits: Limits,
    tree: Tree,
    spool: Spool<BufWriter<S>>,
    entries: u64,
    unpacked_bytes: u64,
    left_out: LeftOut,
    identity: Hasher,
}

/// What became of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rootfs {
    pub bytes: u64,
    pub left_out: LeftOut,
}

impl<S: Read + Write + Seek> RootfsBuilder<S> {
    /// `spool`: an empty file that can be thrown away afterwards.
    pub fn new(spool: S, limits: Limits) -> Self {
        RootfsBuilder {
            limits,
            tree: Tree::default(),
            spool: Spool { writer: BufWriter::with_capacity(SPOOL_BUFFER_BYTES, spool), length: 0 },
            entries: 0,
            unpacked_bytes: 0,
            left_out: LeftOut::default(),
            identity: Hasher::new(Algorithm::Sha256),
        }
    }

    /// Adds a layer. `blob` is what the manifest says of the packed layer (a docker-archive says nothing),
    /// `diff_id` what the configuration says of the unpacked one. Both are checked to the last byte.
    pub fn add_layer(
        &mut self,
        packed: impl Read,
        blob: Option<&Blob>,
        diff_id: &Digest,
    ) -> Result<(), ImageError> {
        let name = blob.map_or(diff_id, |blob| &blob.digest).to_string();
        let algorithm = blob.map_or(Algorithm::Sha256, |blob| blob.digest.algorithm());
        // One byte more than promised is enough to see that there is more.
        let most = blob.map_or(self.limits.unpacked_bytes, |blob| blob.size).saturating_add(1);
        let mut packed = Measured::new(packed.take(most), algorithm);
        let applied = self.apply(&mut packed, &name, diff_id);
        let Some(blob) = blob else { return applied };
        // A blob that is not the promised one is the cause of whatever else went wrong with it.
        if let Err(
            error @ (ImageError::Read { .. } | ImageError::Write { .. } | ImageError::OverLimit { .. }),
        ) = applied
        {
            return Err(error);
        }
        let (digest, bytes) = packed.finish().map_err(|error| stream_error(&name, error))?;
        if bytes != blob.size {
            let what = format!("layer {name}");
            return Err(ImageError::WrongSize { what, expected: blob.size, found: bytes });
        }
        if digest != blob.digest {
            let what = format!("layer {name}");
            return Err(ImageError::WrongDigest { what, expected: blob.digest.clone(), found: digest });
        }
        applied
    }

    fn apply(&mut self, packed: impl Read, name: &str, diff_id: &Digest) -> Result<(), ImageError> {
        let unpacked = Unpacked::new(packed, &self.limits, self.unpacked_bytes);
        let unpacked = unpacked.map_err(|error| stream_error(name, error))?;
        let mut stream = Measured::new(unpacked, diff_id.algorithm());
        let reader = LayerReader {
            stream: &mut stream,
            tree: &mut self.tree,
            spool: &mut self.spool,
            limits: &self.limits,
            name,
            entries: &mut self.entries,
            left_out: &mut self.left_out,
        };
        reader.read()?;
        let (found, bytes) = stream.finish().map_err(|error| stream_error(name, error))?;
        self.unpacked_bytes += bytes;
        self.identity.update(diff_id.to_string().as_bytes());
        if found != *diff_id {
            let what = format!("the content of layer {name}");
            return Err(ImageError::WrongDigest { what, expected: diff_id.clone(), found });
        }
        Ok(())
    }

    /// Copies one regular file of the image; `false`: there is none of that path.
    pub fn copy_file(&mut self, path: &str, output: &mut dyn Write) -> Result<bool, ImageError> {
        let Ok(Some((offset, size))) = self.tree.find_file(path.as_bytes()) else { return Ok(false) };
        let read_error = |error| ImageError::Read { place: "the unpacked image".to_owned(), error };
        let end = self.spool.length;
        self.spool.writer.flush().map_err(read_error)?;
        let spool = self.spool.writer.get_mut();
        spool.seek(SeekFrom::Start(offset)).map_err(read_error)?;
        let copied = io::copy(&mut spool.take(size), output);
        copied.map_err(|error| ImageError::Write { place: "a file of the image", error })?;
        spool.seek(SeekFrom::Start(end)).map_err(read_error)?;
        Ok(true)
    }

    /// Writes the root file system. The same layers give the same bytes, however they were packed.
    pub fn finish(self, output: impl Write) -> Result<Rootfs, ImageError> {
        let id = self.identity.finish();
        let mut uuid = [0; 16];
        for (byte, pair) in uuid.iter_mut().zip(id.hex().as_bytes().chunks(2)) {
            let digit = |b: u8| (b as char).to_digit(16).unwrap_or_default() as u8;
            *byte = digit(pair[0]) << 4 | digit(pair[1]);
        }
        let write_error = |place| move |error| ImageError::Write { place, error };
        let spool = self.spool.writer.into_inner().map_err(|error| error.into_error());
        let mut spool = spool.map_err(write_error("the unpacked image"))?;
        let bytes = erofs::write(&self.tree, &mut spool, uuid, output)
            .map_err(write_error("the root file system"))?;
        Ok(Rootfs { bytes, left_out: self.left_out })
    }
}
