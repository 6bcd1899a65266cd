//! Where output goes. Results to stdout, as JSON or for people; all else to stderr.
//!
//! Invariants: a reader that has seen enough (a closed pipe) is no error; text that came from elsewhere cannot steer
//! the terminal.

use cloudpal_api::ProblemBody;
use cloudpal_model::{Kind, Problem};
use serde::Serialize;
use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
};

pub struct Screen {
    pub json: bool,
}

impl Screen {
    pub fn new(json: bool) -> Self {
        Screen { json }
    }

    /// The command's result: `value` for programs, `human` for people.
    pub fn answer<T: Serialize, H: Display>(
        &self,
        value: &T,
        human: impl FnOnce(&T) -> H,
    ) -> Result<(), Problem> {
        match self.json {
            true => self.json(value),
            false => self.text(human(value)),
        }
    }

    pub fn json<T: Serialize>(&self, value: &T) -> Result<(), Problem> {
        let text = serde_json::to_string_pretty(value).map_err(|error| {
            Problem::new(Kind::Internal, format!("writing JSON: {error}"), "report it as a bug")
        })?;
        self.raw(format!("{text}\n").as_bytes())
    }

    pub fn text(&self, text: impl Display) -> Result<(), Problem> {
        self.raw(format!("{}\n", text.to_string().trim_end()).as_bytes())
    }

    /// Bytes to stdout, as they are.
    pub fn raw(&self, bytes: &[u8]) -> Result<(), Problem> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Problem::io("writing to stdout", &error))
            }
            _ => Ok(()),
        }
    }

    /// A secret that exists nowhere else: that nobody took it is an error, also when the reader has gone away.
    pub fn secret(&self, text: &str) -> Result<(), Problem> {
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(text.trim_end().as_bytes()).and_then(|()| stdout.write_all(b"\n"));
        written.and_then(|()| stdout.flush()).map_err(|error| Problem::io("writing to stdout", &error))
    }

    /// A word to the person, which is no result. Nobody is there with `--json`.
    pub fn note(&self, text: impl Display) {
        if !self.json {
            // stderr that is gone cannot be told that it is gone.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    pub fn problem(&self, problem: &Problem) {
        let text = match self.json {
            true => serde_json::to_string_pretty(&ProblemBody::new(problem.clone())).unwrap_or_default(),
            false if problem.mend.is_empty() => format!("error: {}", printable(&problem.what)),
            false => format!("error: {}\nmend: {}", printable(&problem.what), printable(&problem.mend)),
        };
        let _ = writeln!(io::stderr(), "{text}");
    }

    pub fn stdout_is_terminal(&self) -> bool {
        io::stdout().is_terminal()
    }

    /// Whether a moving progress bar has somebody to look at it.
    pub fn shows_motion(&self) -> bool {
        !self.json && io::stderr().is_terminal()
    }
}

/// Without the characters that steer a terminal, except line breaks and tabs.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\nc"), "a\u{fffd}[2Jb\nc");
    }
}
