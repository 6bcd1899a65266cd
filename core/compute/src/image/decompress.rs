//! What a layer is packed with: gzip (also of several members), zstd (also of several frames), or nothing.
//!
//! The content tells, not the media type: images exist whose media type is wrong. Every byte that comes out is counted
//! against the limits, so a zip bomb ends early.

use super::limits::Limits;
use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};
use std::{
    cell::Cell,
    io::{self, BufRead, BufReader, Chain, Cursor, Read},
    rc::Rc,
};

/// The largest window of a zstd frame that is accepted; `zstd --long` uses this much.
const MAX_ZSTD_WINDOW_BYTES: u64 = 128 << 20;

/// Why a decompressed stream ended early: over a limit. Travels inside an [`io::Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Bomb {
    #[error("more than {limit} bytes per packed byte")]
    Ratio { limit: u64 },
    #[error("more than {limit} bytes unpacked")]
    Size { limit: u64 },
}

/// Counts the packed bytes.
struct Counted<R> {
    inner: R,
    bytes: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        self.bytes.set(self.bytes.get() + count as u64);
        Ok(count)
    }
}

type Source<R> = Chain<Cursor<Vec<u8>>, BufReader<Counted<R>>>;

enum Decoder<R: Read> {
    Plain(Source<R>),
    Gzip(MultiGzDecoder<Source<R>>),
    Zstd(Box<Zstd<Source<R>>>),
}

/// The unpacked bytes of a layer, held to the limits.
pub struct Unpacked<R: Read> {
    decoder: Decoder<R>,
    packed_bytes: Rc<Cell<u64>>,
    unpacked_bytes: u64,
    /// How many bytes may still come out, over all layers.
    allowed_bytes: u64,
    limits: Limits,
}

impl<R: Read> Unpacked<R> {
    /// `used_bytes`: what earlier layers have taken of [`Limits::unpacked_bytes`].
    pub fn new(source: R, limits: &Limits, used_bytes: u64) -> io::Result<Self> {
        let packed_bytes = Rc::new(Cell::new(0));
        let counted = Counted { inner: source, bytes: Rc::clone(&packed_bytes) };
        let mut source = BufReader::with_capacity(64 << 10, counted);
        let mut head = Vec::with_capacity(4);
        source.by_ref().take(4).read_to_end(&mut head)?;
        let is_gzip = head.starts_with(&[0x1f, 0x8b]);
        // A skippable frame may come first (zstd:chunked, pzstd).
        let is_zstd = head == [0x28, 0xb5, 0x2f, 0xfd]
            || (head.len() == 4 && head[0] & 0xf0 == 0x50 && head[1..] == [0x2a, 0x4d, 0x18]);
        let source = Cursor::new(head).chain(source);
        let decoder = if is_gzip {
            Decoder::Gzip(MultiGzDecoder::new(source))
        } else if is_zstd {
            Decoder::Zstd(Box::new(Zstd::new(source)))
        } else {
            Decoder::Plain(source)
        };
        let allowed_bytes = limits.unpacked_bytes.saturating_sub(used_bytes);
        Ok(Unpacked { decoder, packed_bytes, unpacked_bytes: 0, allowed_bytes, limits: limits.clone() })
    }

    /// Whether the stream is compressed.
    pub fn is_packed(&self) -> bool {
        !matches!(self.decoder, Decoder::Plain(_))
    }
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.decoder {
            Decoder::Plain(decoder) => decoder.read(buf)?,
            Decoder::Gzip(decoder) => decoder.read(buf)?,
            Decoder::Zstd(decoder) => decoder.read(buf)?,
        };
        self.unpacked_bytes += count as u64;
        if self.unpacked_bytes > self.allowed_bytes {
            return Err(io::Error::other(Bomb::Size { limit: self.limits.unpacked_bytes }));
        }
        let most =
            self.packed_bytes.get().saturating_mul(self.limits.ratio).max(self.limits.ratio_free_bytes);
        if self.unpacked_bytes > most {
            return Err(io::Error::other(Bomb::Ratio { limit: self.limits.ratio }));
        }
        Ok(count)
    }
}

/// Frame after frame of zstd; the library's own reader ends after the first.
struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> Zstd<R> {
    fn new(source: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_ZSTD_WINDOW_BYTES);
        Zstd { source, decoder, in_frame: false }
    }

    /// Begins the next frame; false at the end of the source.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    if io::copy(&mut self.source.by_ref().take(length), &mut io::sink())? < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string())),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.in_frame {
                if !self.next_frame()? {
                    return Ok(0);
                }
                self.in_frame = true;
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            }
            let count = self.decoder.read(buf)?;
            if count > 0 {
                return Ok(count);
            }
            self.in_frame = false;
        }
    }
}
