//! The end of a growing file, and what is added to it, as a response body.
//!
//! Invariants: memory use does not depend on the file; a file that was replaced or cut short is read from its start
//! again; a reader that went away ends the following, since nobody polls the body any more.

use axum::body::{Body, Bytes};
use cloudpal_model::Problem;
use futures_util::stream;
use std::{
    io::{self, SeekFrom},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::Duration,
};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt},
};

/// The most that is read at once, bytes.
const PIECE_BYTES: usize = 64 << 10;
/// How often a followed file is looked at.
const POLL: Duration = Duration::from_millis(200);

pub struct Tail {
    path: PathBuf,
    /// `None`: the file does not exist yet.
    file: Option<File>,
    offset: u64,
}

impl Tail {
    /// Starts `tail_bytes` before the file's end. A file that does not exist yet is empty.
    pub async fn open(path: PathBuf, tail_bytes: u64) -> Result<Self, Problem> {
        let place = |error: &io::Error| Problem::io(format_args!("reading {}", path.display()), error);
        let mut file = match File::open(&path).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Tail { path, file: None, offset: 0 });
            }
            Err(error) => return Err(place(&error)),
        };
        let length = file.metadata().await.map_err(|error| place(&error))?.len();
        let offset = length.saturating_sub(tail_bytes);
        file.seek(SeekFrom::Start(offset)).await.map_err(|error| place(&error))?;
        Ok(Tail { path, file: Some(file), offset })
    }

    /// The rest of the file.
    pub fn rest(self) -> Body {
        Body::from_stream(stream::try_unfold(self, async |mut tail| {
            let piece = tail.piece().await?;
            Ok::<_, io::Error>(piece.map(|piece| (piece, tail)))
        }))
    }

    /// The rest of the file and whatever is added, until `path_now` says that there is no such log any more.
    pub fn follow<F>(self, path_now: impl Fn() -> F + Send + 'static) -> Body
    where
        F: Future<Output = Option<PathBuf>> + Send,
    {
        Body::from_stream(stream::try_unfold((self, path_now), async |(mut tail, path_now)| {
            loop {
                if let Some(piece) = tail.piece().await? {
                    return Ok::<_, io::Error>(Some((piece, (tail, path_now))));
                }
                tokio::time::sleep(POLL).await;
                match path_now().await {
                    Some(path) => tail.path = path,
                    None => return Ok(None),
                }
                tail.look_again().await?;
            }
        }))
    }

    /// The next bytes; `None` at the file's present end.
    async fn piece(&mut self) -> io::Result<Option<Bytes>> {
        let Some(file) = &mut self.file else { return Ok(None) };
        let mut piece = vec![0; PIECE_BYTES];
        let length = file.read(&mut piece).await?;
        self.offset += length as u64;
        piece.truncate(length);
        Ok((length > 0).then(|| piece.into()))
    }

    /// Opens the file if it came to be or was replaced, and starts over if it was cut short.
    async fn look_again(&mut self) -> io::Result<()> {
        let now = match tokio::fs::metadata(&self.path).await {
            Ok(now) => now,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let same = match &self.file {
            Some(file) => file.metadata().await?.ino() == now.ino(),
            None => false,
        };
        if !same || now.len() < self.offset {
            self.file = Some(File::open(&self.path).await?);
            self.offset = 0;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use std::io::Write;

    #[tokio::test]
    async fn only_the_tail_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "0123456789").unwrap();
        let body = Tail::open(path.clone(), 4).await.unwrap().rest();
        assert_eq!(body.collect().await.unwrap().to_bytes(), "6789");
        let missing = Tail::open(dir.path().join("none"), 4).await.unwrap().rest();
        assert_eq!(missing.collect().await.unwrap().to_bytes(), "");
    }

    #[tokio::test]
    async fn following_sees_what_is_added_and_a_file_cut_short_and_ends_with_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let gone = dir.path().join("gone");
        let (path_now, gone_now) = (path.clone(), gone.clone());
        let mut body = Tail::open(path.clone(), 100).await.unwrap().follow(move || {
            let answer = (!gone_now.exists()).then(|| path_now.clone());
            async move { answer }
        });
        let mut next = async || body.frame().await.map(|frame| frame.unwrap().into_data().unwrap());
        std::fs::write(&path, "first ").unwrap();
        assert_eq!(next().await.unwrap(), "first ");
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"second").unwrap();
        assert_eq!(next().await.unwrap(), "second");
        std::fs::write(&path, "new").unwrap();
        assert_eq!(next().await.unwrap(), "new");
        std::fs::write(&gone, "").unwrap();
        assert!(next().await.is_none());
    }
}
