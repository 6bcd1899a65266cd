//! `cloudpal logs`

use crate::{screen::Screen, units};
use cloudpal_api::{Client, LogQuery};
use cloudpal_model::{Name, Problem};
use std::{
    io::{self, Write},
    process::ExitCode,
};

pub const HELP: &str = "\
To a terminal, characters that would steer it are shown as replacement characters; to a pipe or a
file the app's output goes as it is.

Examples:
  cloudpal logs ada radicale
  cloudpal logs ada radicale -f --tail 4KiB

Exit codes: 0 done, 3 no such app.
With --json: one object a line, {\"line\": \"…\"}.";

#[derive(clap::Args)]
pub struct Args {
    /// The tenant
    tenant: Name,
    /// The app
    app: Name,
    /// Go on with what the app writes from now on, until interrupted
    #[arg(short, long)]
    follow: bool,
    /// How much of the log's end
    #[arg(long, value_name = "SIZE", default_value = "64KiB", value_parser = units::bytes)]
    tail: u64,
}

pub fn run(args: Args, client: &Client, screen: &Screen) -> Result<ExitCode, Problem> {
    let query = LogQuery { tail_bytes: Some(args.tail), follow: args.follow };
    let mut lines = Lines::default();
    let terminal = screen.stdout_is_terminal();
    let mut sink = |bytes: &[u8]| {
        let text = match (screen.json, terminal) {
            (true, _) => lines.json(bytes)?,
            (false, true) => crate::screen::printable(&String::from_utf8_lossy(bytes)).into_bytes(),
            (false, false) => bytes.to_vec(),
        };
        let mut stdout = io::stdout().lock();
        stdout.write_all(&text)?;
        stdout.flush()
    };
    client.logs(&args.tenant, &args.app, query, &mut sink)?;
    if screen.json {
        screen.raw(&lines.rest().map_err(|error| Problem::io("writing the log", &error))?)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Cuts pieces of any length into lines, each an object of its own.
#[derive(Default)]
struct Lines {
    unfinished: Vec<u8>,
}

impl Lines {
    fn json(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.unfinished.extend_from_slice(part);
            if part.ends_with(b"\n") {
                self.unfinished.pop();
                text.extend(self.take()?);
            }
        }
        Ok(text)
    }

    /// A last line without its end.
    fn rest(&mut self) -> io::Result<Vec<u8>> {
        if self.unfinished.is_empty() { Ok(Vec::new()) } else { self.take() }
    }

    fn take(&mut self) -> io::Result<Vec<u8>> {
        let line = std::mem::take(&mut self.unfinished);
        let mut text = serde_json::to_vec(&serde_json::json!({ "line": String::from_utf8_lossy(&line) }))?;
        text.push(b'\n');
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_however_they_come() {
        let mut lines = Lines::default();
        assert_eq!(lines.json(b"one\ntw").unwrap(), b"{\"line\":\"one\"}\n");
        assert_eq!(lines.json(b"o\n\nthr").unwrap(), b"{\"line\":\"two\"}\n{\"line\":\"\"}\n");
        assert_eq!(lines.rest().unwrap(), b"{\"line\":\"thr\"}\n");
        assert_eq!(lines.rest().unwrap(), b"");
    }
}
